from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from chargpt.evaluation import baselines
from chargpt.evaluation.baselines import ngram_bits, verdict


def by_hand(train: list[int], val: list[int], size: int, order: int) -> float:
    """Witten and Bell's mixture as its definition reads, for one order."""
    grams = Counter(tuple(train[i - n : i + 1]) for n in range(order) for i in range(n, len(train)))
    text, bits = train + val, 0.0

    def chance(context: tuple[int, ...], character: int) -> float:
        shorter = chance(context[1:], character) if context else 1 / size
        after = [grams[(*context, c)] for c in range(size)]
        kinds, total = sum(map(bool, after)), sum(after)
        return (grams[(*context, character)] + kinds * shorter) / (total + kinds) if total else shorter

    for i in range(len(train) + 1, len(text)):
        bits -= math.log2(chance(tuple(text[i - order + 1 : i]), text[i]))
    return bits / (len(val) - 1)


def test_it_is_the_best_interpolated_ngram() -> None:
    ids = (np.random.default_rng(0).integers(0, 3, 400).cumsum() % 7).astype(np.uint8)
    train, val = ids[:300], ids[300:]
    bits = [by_hand(train.tolist(), val.tolist(), 7, order) for order in baselines.ORDERS]
    assert ngram_bits(train, val, 7) == pytest.approx(min(bits))
    assert bits[0] == min(bits) < math.log2(7), "longer ones know nothing more of this text"


def test_it_counts_a_bounded_part_of_a_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = (np.arange(4000) % 5).astype(np.uint8)
    ids[:1000] = 6
    monkeypatch.setattr(baselines, "COUNTED", 400)
    assert ngram_bits(ids[:3000], ids[3000:], 7) == ngram_bits(ids[2600:3000], ids[3000:3100], 7)


def test_the_verdict_says_what_to_do() -> None:
    assert verdict(2.1, 2.4) == "2.10 bits per character; an n-gram reaches 2.40."
    assert verdict(2.314, 2.19).endswith("reaches 2.19. Use init: base, or a longer text.")
    assert verdict(2.314, 2.19, "base").endswith("reaches 2.19. Use a longer text.")
