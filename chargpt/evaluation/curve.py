"""The training curve: losses by step, a tab-separated table that grows line by line while training runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from chargpt.errors import ChargptError

# nats per character: a rise of the validation loss, and a distance to the training loss, that mean something
RISE, GAP = 0.01, 0.4
WORSE = 0.1  # nats per character above the untrained model: more, and training did harm
UNSEEN = 0.01  # share of the validation characters: more, and the text is not the same throughout
MAX_DRAWN = 1e30  # larger values overflow the axes of a chart


@dataclass(frozen=True)
class Row:
    """One point of the training curve. step: updates made so far. Losses are in nats per character."""

    step: int
    train_loss: float
    val_loss: float
    lr: float

    def __str__(self) -> str:
        return f"{self.step}\t{self.train_loss:.6f}\t{self.val_loss:.6f}\t{self.lr:.8g}\n"


HEADER = "\t".join(field.name for field in fields(Row)) + "\n"


class Curve:
    """Writes the table: the first row creates the file, and each row appears at once, so that it can be watched."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.begun = False

    def add(self, row: Row) -> None:
        """Append one row."""
        if not self.begun:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)  # it may be a link into DVC's cache, which must not change
        with self.path.open("a", newline="\n") as file:
            file.write(str(row) if self.begun else f"{HEADER}{row}")
        self.begun = True


def read_curve(path: str | Path) -> list[Row]:
    """Read the table. A last line without a line end is still being written, and is left out.

    Raises ChargptError if the file is missing or not a training curve.
    """
    if not Path(path).is_file():
        raise ChargptError(f"{path}: no such file; run: dvc repro")
    try:
        header, *lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
        cells = [line.split("\t") for line in lines if line.endswith("\n")]
        rows = [Row(int(step), *map(float, rest)) for step, *rest in cells]
        if header != HEADER or not all(abs(value) < MAX_DRAWN for row in rows for value in astuple(row)):  # or nan
            raise ValueError
        return rows
    except (TypeError, ValueError):
        raise ChargptError(f"{path}: not a training curve; run: dvc repro -f train") from None


def diagnosis(rows: Sequence[Row], unseen: float) -> str:
    """What the curve of a finished run says about divergence, the text, and the number of steps; empty if nothing.

    rows: one or more, in the order of their steps. unseen: the share of the validation characters that do not occur in
    the training part, from 0 to 1.
    """
    last, best = rows[-1], min(rows, key=lambda row: row.val_loss)
    rose = last.val_loss > best.val_loss + RISE
    if rose and last.train_loss > best.train_loss + RISE:
        return (
            f"training diverged: after step {best.step}, the training loss rose from {best.train_loss:.4f} to"
            f" {last.train_loss:.4f}; lower the learning rate (-S lr={max(row.lr for row in rows) / 3:.2g})"
        )
    differs = "the end of the text, which is for validation, differs from its beginning"
    if (rose or last.val_loss - last.train_loss > GAP) and unseen > UNSEEN:
        return f"{differs}: {unseen:.0%} of its characters do not occur before; shuffle the parts of the text"
    if rose and best.step == 0 and last.train_loss < rows[0].train_loss - WORSE:
        return (
            f"{differs}: from the first step on, the validation loss rose, and the training loss fell to"
            f" {last.train_loss:.4f}; shuffle the parts of the text"
        )
    if rose and best.step:
        return f"the validation loss was lowest at step {best.step}: fewer steps suffice (-S max_iters={best.step})"
    return ""
