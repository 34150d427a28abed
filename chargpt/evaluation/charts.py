"""Draw the charts of the page, as images inside the page. The same numbers give the same bytes."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from chargpt.evaluation.analysis import Analysis
from chargpt.evaluation.curve import Row
from chargpt.text.vocab import Vocab

STYLE: Any = {
    "svg.hashsalt": "chargpt",  # without it, ids are random
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "text.parse_math": False,  # a dollar sign is text, not mathematics
}


def charts(curve: Sequence[Row], analysis: Analysis, vocab: Vocab) -> list[tuple[str, str]]:
    """The title and the image of each chart. Each image is a data URL, so the page needs no other file."""
    places, losses = zip(*analysis.positions(), strict=True)
    hardest, steps = analysis.hardest(vocab), [row.step for row in curve]
    settings = {name: value for name, value in matplotlib.rcParamsDefault.items() if "backend" not in name}
    # the user's own settings must not change the page
    with matplotlib.rc_context(settings | STYLE), warnings.catch_warnings():
        # matplotlib's font lacks some characters, but the reader's browser draws them with its own fonts
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        by_position = line_chart(places, losses, "position in the context", "nats per character")
        return [
            ("Loss by step", loss_chart(curve)),
            ("Learning rate by step", line_chart(steps, [row.lr for row in curve], "step", "learning rate")),
            ("Loss by position in the context", by_position),
            ("Hardest characters", bar_chart([name for name, _, _ in hardest], [nats for *_, nats in hardest])),
        ]


def loss_chart(curve: Sequence[Row]) -> str:
    """Training and validation loss by step, as a data URL."""
    figure, axes = _chart("step", "nats per character")
    steps = [row.step for row in curve]
    axes.plot(steps, [row.train_loss for row in curve], color="#8a8a8a", label="training", marker=".")
    axes.plot(steps, [row.val_loss for row in curve], color="#c8501e", label="validation", marker=".")
    axes.legend(frameon=False)
    return _address(figure)


def line_chart(x: Sequence[float], y: Sequence[float], x_label: str, y_label: str) -> str:
    """A chart with one line, as a data URL."""
    figure, axes = _chart(x_label, y_label)
    axes.plot(x, y, color="#c8501e", marker="." if len(x) < 20 else None)
    return _address(figure)


def bar_chart(names: Sequence[str], nats: Sequence[float]) -> str:
    """A chart with horizontal bars, the first at the top, as a data URL."""
    figure, axes = _chart("nats per character", "")
    axes.barh(range(len(names)), nats, color="#c8501e")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    return _address(figure)


def _chart(x_label: str, y_label: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    return figure, figure.add_subplot(xlabel=x_label, ylabel=y_label)


def _address(figure: Figure) -> str:
    drawing = io.BytesIO()
    figure.savefig(drawing, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(drawing.getvalue()).decode()
