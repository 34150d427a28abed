"""Export the trained model as a Hugging Face directory, with its metrics on the model card."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from chargpt.export.huggingface import export
from chargpt.files import finite_numbers, read_json
from chargpt.model.file import read_model
from chargpt.paths import HF, METRICS, MODEL

if TYPE_CHECKING:
    from chargpt.params import Params


def main(_: Params) -> None:
    """Export the model to artifacts/hf."""
    if remark := export(read_model(MODEL), HF, finite_numbers(read_json(METRICS))):
        print(f"export: {remark}", file=sys.stderr)
