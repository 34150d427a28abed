"""The trained model's exact loss on the validation split."""

import sys

from chargpt.errors import one_line_errors
from chargpt.params import load_params


def main() -> None:
    params = load_params()
    from chargpt.checkpoint import load_model
    from chargpt.data import read_tokens
    from chargpt.device import pick_device
    from chargpt.evaluation import evaluate, metrics
    from chargpt.files import write_json

    model, vocab = load_model("artifacts/model.safetensors", pick_device(params.device))
    _, val_ids = read_tokens("data/tokens.safetensors", vocab)
    figures = metrics(evaluate(model, val_ids))
    write_json("metrics/evaluate.json", figures)
    print("evaluate: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()), file=sys.stderr)


if __name__ == "__main__":
    with one_line_errors():
        main()
