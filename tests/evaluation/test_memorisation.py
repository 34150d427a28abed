from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chargpt.evaluation import memorisation
from chargpt.evaluation.memorisation import find_overlap, hashes


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 1), min_size=1, max_size=60),
    st.integers(1, 3),
    st.lists(st.integers(0, 1), min_size=1, max_size=90),
    st.sampled_from([1, 7, 64]),
    st.sampled_from([2, 5]),
)
def test_overlap_is_what_a_search_finds(some: list[int], rows: int, train: list[int], piece: int, passage: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memorisation, "PIECE", piece)
        patch.setattr(memorisation, "PASSAGE", passage)
        texts = np.array([some[i:] + some[:i] for i in range(rows)], np.uint8)
        overlap = find_overlap(texts, np.array(train, np.uint8))
    text = "".join(map(str, train))
    written = ["".join(map(str, row)) for row in texts.tolist()]

    def passages(length: int) -> list[str]:
        return [row[i : i + length] for row in written for i in range(len(row) - length + 1)]

    longest = max((n for n in range(1, len(some) + 1) if any(p in text for p in passages(n))), default=0)
    assert len(overlap.longest) == longest
    assert "".join(map(str, overlap.longest.tolist())) in text
    expected = [p in text for p in passages(passage)]
    assert overlap.share == pytest.approx(sum(expected) / len(expected) if expected else 0)


def test_hashes_of_different_windows_differ() -> None:
    values = np.random.default_rng(1).integers(0, 2**64, 300, dtype=np.uint64)[np.arange(5000) % 300]
    for length in (1, 2, 3, 20, 31, 257):
        found = hashes(values, length)
        assert len(found) == 5001 - length
        assert len(np.unique(found)) == 300  # the text repeats itself every 300 characters
        assert np.array_equal(found[:300], found[300:600])
    assert hashes(values[:4], 5).shape == (0,)
    assert hashes(values.reshape(50, 100), 20).shape == (50, 81)
