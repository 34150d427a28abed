"""Encode the corpus: a vocabulary, and token ids that are split into training and validation.

Also copy the model file that training starts from, so that its content is an input of training.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from chargpt.files import atomic_write, write_text
from chargpt.paths import INIT, TOKENS, VOCAB, init_file
from chargpt.text.corpus import scan_text
from chargpt.text.documents import list_note, write_documents
from chargpt.text.tokens import split_sizes, write_tokens
from chargpt.text.vocab import Vocab

if TYPE_CHECKING:
    from chargpt.params import Params


def main(params: Params) -> None:
    """Write data/tokens.safetensors, artifacts/vocab.json and artifacts/init.safetensors."""
    start = init_file(params.init)
    vocab, length = scan_text(params.corpus)
    if params.documents == "whole":
        train, val = split_sizes(length, params.val_fraction)
        write_tokens(TOKENS, params.corpus, vocab, length, params.val_fraction)
        found = f"{train} to train on, {val} to validate on"
        if note := list_note(params.corpus):
            print(f"note: {note}", file=sys.stderr)
    else:
        vocab = Vocab(sorted({*vocab.itos, "\n"}), vocab.seen_once, vocab.length)
        found = write_documents(TOKENS, params.corpus, vocab, params.documents, params.val_fraction)
    write_text(VOCAB, vocab.to_json())
    with atomic_write(INIT) as file:
        file.write(start.read_bytes() if start else b"")
    print(f"prepare: {len(vocab)} distinct characters; {found}", file=sys.stderr)
