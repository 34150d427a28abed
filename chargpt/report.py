"""A page about a model that opens anywhere: curves, metrics, a sample, and text coloured by surprise.

One file without scripts or links; the same inputs give the same bytes.
"""

from __future__ import annotations

import base64
import csv
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from chargpt.analysis import Prediction, visible
from chargpt.errors import ChargptError

LEVELS = 9  # of surprise, one bit each; the last is open
STYLE: Any = {
    "svg.hashsalt": "chargpt",  # else ids are random
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "text.parse_math": False,  # a dollar sign is a character here
}


def render(
    *,
    facts: Mapping[str, Any],
    figures: Mapping[str, float],
    previous: tuple[str, Mapping[str, float]] | None,
    curve: Mapping[str, Sequence[float]],
    positions: Sequence[tuple[int, float]],
    hardest: Sequence[tuple[str, int, float]],
    stretch: Sequence[Prediction],
    sample: str,
) -> str:
    """The page as HTML.

    facts: what to say of the model, by name. figures: its metrics; previous: name and metrics of the version before.
    curve: columns `step`, `train_loss`, `val_loss`, `lr`. positions, hardest: of an Analysis. stretch: text with the
    model's expectations. sample: text that the model wrote after it.
    """
    seen, losses = [x for x, _ in positions], [y for _, y in positions]
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's browser has other fonts
        charts = [
            ("Loss by step", loss_chart(curve)),
            ("Learning rate by step", line_chart(curve["step"], curve["lr"], "step", "learning rate")),
            (
                "Loss by characters seen before",
                line_chart(seen, losses, "characters of context", "nats per character"),
            ),
            ("Hardest characters", bar_chart([name for name, _, _ in hardest], [nats for *_, nats in hardest])),
        ]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    table = [(name, value, previous[1].get(name) if previous else None) for name, value in sorted(figures.items())]
    return environment.get_template("report.html.j2").render(
        facts=facts,
        metrics=table,
        previous=previous[0] if previous else None,
        charts=charts,
        stretch=[_cell(prediction) for prediction in stretch],
        levels=range(LEVELS),
        sample="".join(_shown(character) for character in sample),
    )


MAX_DRAWN = 1e30  # beyond, the axes overflow


def read_curve(path: str | Path) -> dict[str, list[float]]:
    """The columns of a training curve. Raises ChargptError if the file is none."""
    if not Path(path).is_file():
        raise ChargptError(f"{path}: no such file; run `dvc repro` to make it")
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        columns = {name: [float(row[name]) for row in rows] for name in ("step", "train_loss", "val_loss", "lr")}
        if not all(abs(value) < MAX_DRAWN for column in columns.values() for value in column):  # nan is none either
            raise ValueError
        return columns
    except (KeyError, TypeError, ValueError, csv.Error):
        raise ChargptError(f"{path}: not a training curve; run `dvc repro -f train` to make it again") from None


def loss_chart(curve: Mapping[str, Sequence[float]]) -> str:
    """Training and validation loss by step, as an image's address."""
    figure, axes = _chart("step", "nats per character")
    axes.plot(curve["step"], curve["train_loss"], color="#8a8a8a", label="training", marker=".")
    axes.plot(curve["step"], curve["val_loss"], color="#c8501e", label="validation", marker=".")
    axes.legend(frameon=False)
    return _address(figure)


def line_chart(x: Sequence[float], y: Sequence[float], x_label: str, y_label: str) -> str:
    """One line, as an image's address."""
    figure, axes = _chart(x_label, y_label)
    axes.plot(x, y, color="#c8501e", marker="." if len(x) < 20 else None)
    return _address(figure)


def bar_chart(names: Sequence[str], nats: Sequence[float]) -> str:
    """Horizontal bars, the first on top, as an image's address."""
    figure, axes = _chart("nats per character", "")
    axes.barh(range(len(names)), nats, color="#c8501e")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    return _address(figure)


def _chart(x_label: str, y_label: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
    return figure, axes


def _address(figure: Figure) -> str:
    drawing = io.BytesIO()
    figure.savefig(drawing, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(drawing.getvalue()).decode()


def _cell(prediction: Prediction) -> dict[str, Any]:
    """A character of the coloured text: how it looks, its level of surprise, and what is said of it on hover."""
    character, p = prediction.character, prediction.probability
    bits = -math.log2(max(p, 2**-40))
    lines = [f"{visible(character)}  {p:.1%}, {bits:.1f} bits", "", "expected:"]
    lines += [f"{'>' if other == character else ' '} {visible(other)}  {q:.1%}" for other, q in prediction.likeliest]
    shown = visible(character) if character == "\n" else _shown(character)
    return {"shown": shown, "level": min(LEVELS - 1, int(bits)), "about": "\n".join(lines), "ends": character == "\n"}


def _shown(character: str) -> str:
    """A character of running text: what would not print, or would turn the text around, by name."""
    return character if character == "\n" or character.isprintable() else visible(character)
