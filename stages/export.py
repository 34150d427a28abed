"""The trained model as a Hugging Face directory, its figures on the model card."""

import json
from pathlib import Path

from chargpt.params import load_params
from stages import run

MODEL = "artifacts/model.safetensors"


def main() -> None:
    load_params()
    from chargpt.checkpoint import load_model, read_metadata
    from chargpt.export import export

    model, vocab = load_model(MODEL)
    metrics = json.loads(Path("metrics/evaluate.json").read_text(encoding="utf-8"))
    export(model, vocab, "artifacts/hf", read_metadata(MODEL)["params"], metrics)


if __name__ == "__main__":
    run(main)
