"""The trained model as a Hugging Face directory."""

from chargpt.errors import one_line_errors
from chargpt.params import load_params


def main() -> None:
    load_params()
    from chargpt.checkpoint import load_model
    from chargpt.export import export

    model, vocab = load_model("artifacts/model.safetensors")
    export(model, vocab, "artifacts/hf")


if __name__ == "__main__":
    with one_line_errors():
        main()
