"""Encode the corpus: a vocabulary, and token ids that are split into training and validation."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from chargpt.files import write_text
from chargpt.paths import TOKENS, VOCAB
from chargpt.text.corpus import scan_text
from chargpt.text.tokens import split_sizes, write_tokens

if TYPE_CHECKING:
    from chargpt.params import Params


def main(params: Params) -> None:
    """Write data/tokens.safetensors and artifacts/vocab.json."""
    vocab, length = scan_text(params.corpus)
    train, val = split_sizes(length, params.val_fraction)
    write_tokens(TOKENS, params.corpus, vocab, length, params.val_fraction)
    write_text(VOCAB, vocab.to_json())
    print(f"prepare: {len(vocab)} distinct characters; {train} to train on, {val} to validate on", file=sys.stderr)
