"""Draw the charts of the page, as images inside the page. The same numbers give the same bytes."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from chargpt.evaluation.analysis import Analysis
from chargpt.evaluation.curve import Row
from chargpt.text.vocab import Vocab

NATS = "nats per character"
COLORS = ("#8a8a8a", "#c8501e")
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
        by_step = {"training": [row.train_loss for row in curve], "validation": [row.val_loss for row in curve]}
        rates = {"": [row.lr for row in curve]}
        return [
            ("Loss by step", line_chart("step", steps, by_step)),
            ("Learning rate by step", line_chart("step", steps, rates, "learning rate")),
            ("Loss by position in the context", line_chart("position in the context", places, {"": losses})),
            ("Hardest characters", bar_chart([name for name, _, _ in hardest], [nats for *_, nats in hardest])),
        ]


def line_chart(x_label: str, x: Sequence[float], lines: Mapping[str, Sequence[float]], y_label: str = NATS) -> str:
    """A chart with one line, or with two and a legend of their names, as a data URL."""
    figure, axes = _chart(x_label, y_label)
    for (name, y), color in zip(lines.items(), COLORS[-len(lines) :], strict=True):
        axes.plot(x, y, color=color, label=name, marker="." if len(lines) > 1 or len(x) < 20 else None)
    if len(lines) > 1:
        axes.legend(frameon=False)
    return _address(figure)


def bar_chart(names: Sequence[str], nats: Sequence[float]) -> str:
    """A chart with horizontal bars, the first at the top, as a data URL."""
    figure, axes = _chart(NATS, "")
    axes.barh(range(len(names)), nats, color=COLORS[-1])
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
