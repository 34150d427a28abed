"""Memorised text: how much of what a model generates occurs word for word in its training text.

Passages are compared by a hash, a polynomial modulo 2^64 of random numbers that stand for the characters (source: Karp
and Rabin 1987). The training text is read piece by piece, so memory does not grow with it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chargpt.inference.decoder import Model
from chargpt.inference.sampling import Random, Sampling, generate
from chargpt.text.documents import Documents
from chargpt.text.tokens import Ids

PASSAGE = 20  # characters; shorter passages are in the training text by chance
PIECE = 1 << 20  # characters of the training text that are compared at once
ROWS, LENGTH = 32, 500  # texts that the model generates, and their characters
SAMPLING = Sampling(temperature=0.8)  # the default of `chargpt generate`
FACTOR = 0x9E3779B97F4A7C15  # of the polynomial; odd, so that it has an inverse modulo 2^64
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Overlap:
    """What texts have in common with the training text.

    longest: the longest passage that occurs in both, (L,) unsigned ids. share: of the texts' passages of PASSAGE
    characters, the fraction that occurs in the training text, in [0, 1].
    """

    longest: Ids
    share: float


def memorisation(model: Model, train_ids: Ids, val_ids: Ids, written: Ids | None = None) -> tuple[Overlap, Overlap]:
    """The overlaps of the training text with texts that the model generates, and with the validation text.

    Both are ROWS texts of LENGTH characters, or of as many as there are. Each text of the model starts from the
    character before the validation text that it is compared with. train_ids, val_ids: (N,) unsigned, N >= 2.
    written: (N,), documents of the model one after another, which are taken instead.
    """
    length = min(LENGTH, len(val_ids) - 1)
    starts = np.linspace(0, len(val_ids) - 1 - length, ROWS).astype(np.int64)
    if written is None:
        generated = generate(model, val_ids[starts, None], length, SAMPLING, Random(0))[:, 1:]
    else:
        generated = np.resize(written, (ROWS, length))
    validation = val_ids[starts[:, None] + np.arange(1, length + 1)]
    return find_overlap(generated.astype(val_ids.dtype), train_ids), find_overlap(validation, train_ids)


def known_documents(documents: Sequence[Ids], train: Documents) -> NDArray[np.bool_]:
    """Which of the documents, each (N,) with its separator, occur in the training text; (D,)."""
    written = [ids.tobytes() for ids in documents]
    wanted, starts = set(written), [1, *train.ends[:-1].tolist()]
    known = {ids for a, b in zip(starts, train.ends, strict=True) if (ids := train.ids[a:b].tobytes()) in wanted}
    return np.array([ids in known for ids in written])


def find_overlap(texts: Ids, train_ids: Ids) -> Overlap:
    """Compare texts with the training text.

    texts: (R, T) unsigned ids, R texts of T characters; a passage lies within one of them. train_ids: (N,) unsigned.
    """
    top = int(max(texts.max(), train_ids.max()))
    numbers = np.random.default_rng(0).integers(0, 2**64, top + 1, dtype=np.uint64)
    values = numbers[texts]
    passages = hashes(values, PASSAGE)
    found = np.zeros(passages.shape, bool)
    longest = texts[0, :0]
    for start in range(0, len(train_ids), PIECE):  # each piece repeats the end of the one before: no passage is cut
        piece = train_ids[start : start + PIECE + texts.shape[1] - 1]
        known = numbers[piece]
        found |= _occur(passages, hashes(known, PASSAGE))
        longest = _longest(texts, values, known, longest)
    return Overlap(longest, float(found.mean()) if found.size else 0.0)


def _longest(texts: Ids, values: Hashes, known: Hashes, longest: Ids) -> Ids:
    """The longest passage of the texts that occurs in `known`, or `longest` if none is longer.

    values, known: the texts and a piece of the training text, as the numbers that stand for their characters.
    """

    def common(length: int) -> NDArray[np.bool_]:
        return _occur(hashes(values, length), hashes(known, length))

    if not common(len(longest) + 1).any():
        return longest
    lengths = range(texts.shape[1] + 1)
    length = bisect_left(lengths, True, lo=len(longest) + 2, key=lambda length: not common(length).any()) - 1
    row, first = np.argwhere(common(length))[0]
    return texts[row, first : first + length]


def hashes(values: Hashes, length: int) -> Hashes:
    """The hash of each window of `length` values along the last axis, (..., max(0, N - length + 1)) uint64."""
    count = max(0, values.shape[-1] - length + 1)
    factors = (np.full(values.shape[-1], factor, np.uint64) for factor in (FACTOR, pow(FACTOR, -1, 2**64)))
    powers, inverses = (np.multiply.accumulate(factor) for factor in factors)
    sums = np.zeros((*values.shape[:-1], values.shape[-1] + 1), np.uint64)
    np.cumsum(values * powers, axis=-1, out=sums[..., 1:])
    return (sums[..., length:] - sums[..., :count]) * inverses[:count]  # without the power that the place multiplies by


def _occur(some: Hashes, many: Hashes) -> NDArray[np.bool_]:
    """Which of `some` occur among `many`; as np.isin, but faster for few among many."""
    if not many.size:
        return np.zeros(some.shape, bool)
    ordered = np.sort(many)
    return ordered[np.searchsorted(ordered, some).clip(max=len(many) - 1)] == some
