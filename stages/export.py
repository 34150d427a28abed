"""The trained model as a Hugging Face directory, its figures on the model card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages import run

if TYPE_CHECKING:
    from chargpt.params import Params

MODEL = "artifacts/model.safetensors"


def main(_: Params) -> None:
    from chargpt.checkpoint import load_model, read_metadata
    from chargpt.export import export
    from chargpt.files import numbers, read_json

    model, vocab = load_model(MODEL)
    metrics = numbers(read_json("metrics/evaluate.json"))
    export(model, vocab, "artifacts/hf", read_metadata(MODEL)["params"], metrics)


if __name__ == "__main__":
    run(main)
