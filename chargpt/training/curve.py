"""The training curve: losses by step, in a file that grows while training runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TextIO

# nats per character: a rise of the validation loss, and a distance to the training loss, that count as overfitting
RISE, GAP = 0.01, 0.4


@dataclass(frozen=True)
class Row:
    """One point of the training curve. step: updates made so far. Losses are in nats per character."""

    step: int
    train_loss: float
    val_loss: float
    lr: float

    def __str__(self) -> str:
        return f"{self.step}\t{self.train_loss:.6f}\t{self.val_loss:.6f}\t{self.lr:.8g}\n"


def overfitting(rows: Sequence[Row]) -> str:
    """What the curve of a finished run says about overfitting, and what to change; empty if it says nothing.

    rows: one or more, in the order of their steps.
    """
    last, best = rows[-1], min(rows, key=lambda row: row.val_loss)
    gap = last.val_loss - last.train_loss
    if last.val_loss > best.val_loss + RISE:
        return (
            f"the model overfits: the validation loss rose from {best.val_loss:.4f} at step {best.step} to"
            f" {last.val_loss:.4f}; try -S max_iters={max(best.step, rows[1].step // 2)},"
            " a higher weight_decay or dropout"
        )
    if gap > GAP:
        return (
            f"the model overfits: at the end, the training loss is {gap:.2f} below the validation loss;"
            " try fewer max_iters, a higher weight_decay or dropout"
        )
    return ""


class Curve:
    """The curve as a tab-separated file. It is created at the first row and written line by line, to be watched."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.file: TextIO | None = None

    def __enter__(self) -> Curve:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file:
            self.file.close()

    def add(self, row: Row) -> None:
        """Write one row."""
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)  # it may be a link into DVC's cache, which must not change
            self.file = self.path.open("w", newline="\n", buffering=1)
            self.file.write("\t".join(field.name for field in fields(Row)) + "\n")
        self.file.write(str(row))
