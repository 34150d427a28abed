"""Train the model on the tokens, from scratch or from the migrated model."""

from pathlib import Path

from chargpt.errors import one_line_errors
from chargpt.params import load_params


def main() -> None:
    params = load_params()
    from chargpt.checkpoint import load_model, save_model
    from chargpt.data import read_tokens
    from chargpt.errors import ChargptError
    from chargpt.training import TRAINING_KEYS, Row, continued_model, new_model, train
    from chargpt.vocab import Vocab

    vocab = Vocab.from_json(Path("artifacts/vocab.json").read_text(encoding="utf-8"))
    train_ids, val_ids = read_tokens("data/tokens.safetensors")
    if params.init == "migrated":
        migrated, known = load_model("artifacts/migrated.safetensors")
        if known != vocab:
            raise ChargptError(f"{params.corpus}: its characters are not those of the migrated model")
        model = continued_model(migrated, params)
    else:
        model = new_model(params, len(vocab))
    curve = Path("metrics/curves.tsv")
    curve.parent.mkdir(exist_ok=True)
    with curve.open("w", newline="\n", buffering=1) as file:  # line by line, so that it can be watched
        file.write(Row.HEADER)
        model = train(model, train_ids, val_ids, params, on_row=lambda row: print(row, end="", file=file))
    save_model("artifacts/model.safetensors", model, vocab, params.model_dump(include=TRAINING_KEYS))


if __name__ == "__main__":
    with one_line_errors():
        main()
