"""Evaluate the trained model: its exact validation loss, where the loss comes from, and a page about the model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from chargpt.evaluation.curve import read_curve
from chargpt.evaluation.page import make_report
from chargpt.files import write_json, write_rows, write_text
from chargpt.model.file import read_model
from chargpt.paths import CHARACTERS, CURVE, METRICS, MODEL, POSITIONS, REPORT, TOKENS
from chargpt.text.tokens import read_tokens

if TYPE_CHECKING:
    from chargpt.params import Params


def main(params: Params) -> None:
    """Evaluate the model. The page compares it with no other version, so it depends on the stage's inputs only."""
    file = read_model(MODEL)
    report = make_report(file, *read_tokens(TOKENS, file.vocab), read_curve(CURVE), device=params.device)
    write_rows(POSITIONS, ("characters_seen", "loss"), report.analysis.positions())
    write_rows(CHARACTERS, ("character", "count", "loss"), report.analysis.hardest(file.vocab))
    write_text(REPORT, report.page)
    # the loss first: `dvc exp show` keeps this order, and a narrow terminal shows the first columns only
    write_json(METRICS, report.figures | {"copied": report.memorised, "params": file.params}, sort_keys=False)
    print("evaluate: " + ", ".join(f"{name} {value:.4f}" for name, value in report.figures.items()), file=sys.stderr)
    print(f"evaluate: {report.verdict}", file=sys.stderr)
