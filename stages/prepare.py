"""Text to vocabulary and token ids, split into training and validation."""

import sys

from chargpt.params import load_params
from stages import run


def main() -> None:
    params = load_params()
    from chargpt.data import scan_text, split_sizes, write_tokens
    from chargpt.files import write_text

    vocab, length = scan_text(params.corpus)
    train, val = split_sizes(length, params.val_fraction)
    write_tokens("data/tokens.safetensors", params.corpus, vocab, length, params.val_fraction)
    write_text("artifacts/vocab.json", vocab.to_json())
    print(f"prepare: {len(vocab)} distinct characters; {train} to train on, {val} to validate on", file=sys.stderr)


if __name__ == "__main__":
    run(main)
