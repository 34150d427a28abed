"""What counting reaches on the same split: a model that is not as good as an n-gram was not worth training."""

from __future__ import annotations

import numpy as np

from chargpt.text.tokens import Ids

ORDERS = (3, 4, 5, 6)  # characters of an n-gram, the predicted one included
COUNTED = 4_000_000  # training characters at most, so that memory and time are bounded; a quarter as many are predicted


def ngram_bits(train_ids: Ids, val_ids: Ids, vocab_size: int) -> float:
    """Bits per character of the best static n-gram, interpolated as by Witten and Bell (1991).

    train_ids, val_ids: (N,) unsigned, N >= 2. All of the validation text but its first character is predicted, up to
    COUNTED / 4 characters; the last COUNTED characters of the training text are counted.
    """
    train = train_ids[-COUNTED:]
    ids = np.concatenate((train, val_ids[: COUNTED // 4])).astype(np.int64)
    counted, predicted = slice(len(train)), slice(len(train) + 1, None)
    grams = np.zeros(len(ids), np.int64)  # an id of the characters that end at each position; 0 before the text
    chances = np.full(len(ids) - len(train) - 1, 1 / vocab_size)
    bits = []
    for order in range(1, max(ORDERS) + 1):
        contexts = np.concatenate(([0], grams[:-1]))
        found, grams = np.unique(contexts * vocab_size + ids, return_inverse=True)
        counts = np.bincount(grams[counted], minlength=len(found))
        totals = np.bincount(contexts[counted], minlength=contexts.max() + 1)
        kinds = np.bincount(found[counts > 0] // vocab_size, minlength=len(totals))  # that followed a context
        total, kind = (of[contexts[predicted]] for of in (totals, kinds))
        chances = np.where(
            total > 0, (counts[grams[predicted]] + kind * chances) / np.maximum(total + kind, 1), chances
        )
        grams += 1
        if order in ORDERS:
            bits.append(-np.log2(chances).mean())
    return float(min(bits)) or 0.0  # not -0.0


def verdict(bits: float, ngram: float, init: object = "scratch") -> str:
    """Whether training a GPT was worth it, in a sentence. bits, ngram: per character. init: of the model's params."""
    found = f"{bits:.2f} bits per character; an n-gram reaches {ngram:.2f}."
    if bits < ngram:
        return found
    return f"{found} Use {'init: base, or ' if init == 'scratch' else ''}a longer text."
