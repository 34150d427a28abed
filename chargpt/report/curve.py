"""Read a training curve."""

from __future__ import annotations

import csv
from pathlib import Path

from chargpt.errors import ChargptError

MAX_DRAWN = 1e30  # larger values overflow the axes


def read_curve(path: str | Path) -> dict[str, list[float]]:
    """Read the columns `step`, `train_loss`, `val_loss` and `lr`. Raises ChargptError if the file is not a curve."""
    if not Path(path).is_file():
        raise ChargptError(f"{path}: no such file; run `dvc repro` to make it")
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        columns = {name: [float(row[name]) for row in rows] for name in ("step", "train_loss", "val_loss", "lr")}
        if not all(abs(value) < MAX_DRAWN for column in columns.values() for value in column):  # false for nan
            raise ValueError
        return columns
    except (KeyError, TypeError, ValueError, csv.Error):
        raise ChargptError(f"{path}: not a training curve; run `dvc repro -f train` to make it again") from None
