"""Export the trained model as a Hugging Face directory, with its metrics on the model card."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from chargpt.checkpoint import load_model, read_metadata
from chargpt.export.huggingface import export
from chargpt.files import finite_numbers, read_json

if TYPE_CHECKING:
    from chargpt.params import Params

MODEL = "artifacts/model.safetensors"


def main(_: Params) -> None:
    """Export the model to artifacts/hf."""
    model, vocab = load_model(MODEL)
    metrics = finite_numbers(read_json("metrics/evaluate.json"))
    if remark := export(model, vocab, "artifacts/hf", read_metadata(MODEL)["params"], metrics):
        print(f"export: {remark}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit("error: type: python -m stages export")
