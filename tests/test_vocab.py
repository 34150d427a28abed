from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chargpt.errors import ChargptError
from chargpt.vocab import Vocab

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(text)
def test_round_trip(s: str) -> None:
    vocab = Vocab(sorted(set(s)))
    assert vocab.decode(vocab.encode(s)) == s
    assert "".join(json.loads(vocab.to_json())["characters"]) == "".join(vocab.itos)
    assert vocab.encode(s) == [sorted(set(s)).index(c) for c in s]  # the legacy system's ids


@given(text, text)
def test_unknown_characters_are_named(known: str, s: str) -> None:
    vocab = Vocab(sorted(set(known)))
    unknown = [c for c in s if c not in known]
    if unknown:
        with pytest.raises(ChargptError) as error:
            vocab.encode(s)
        assert repr(unknown[0]) in str(error.value)
    else:
        assert vocab.decode(vocab.encode(s)) == s


@pytest.mark.parametrize(("size", "dtype"), [(1, np.uint8), (256, np.uint8), (257, np.uint16), (70_000, np.uint32)])
def test_smallest_dtype(size: int, dtype: type) -> None:
    characters = [chr(i) for i in range(size + 2048) if not 0xD800 <= i < 0xE000][:size]
    vocab = Vocab(characters)
    assert vocab.dtype == dtype
    assert vocab.encode_array(characters[-1] + characters[0]).tolist() == [size - 1, 0]
    assert vocab.encode_array("").dtype == dtype


def test_any_iterable_of_ids_decodes() -> None:
    vocab = Vocab("abc")
    assert vocab.decode(np.array([2, 1], np.uint8)) == "cb" == vocab.decode(iter([2, 1]))
    for bad in (-1, 3):
        with pytest.raises(ChargptError, match="outside the vocabulary of 3"):
            vocab.decode([bad])


@pytest.mark.parametrize("characters", ["", "ba", "aa", ["ab"], [""], ["\ud800"], [1]])
def test_refused(characters: list[str]) -> None:
    with pytest.raises(ChargptError):
        Vocab(characters)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"characters": 1}', b'{"characters": "ba"}', b"[" * 100_000, b"\xff\xfe"]
)
def test_refused_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vocab.json").write_bytes(content)
    with pytest.raises(ChargptError, match=r"vocab\.json: not a vocabulary"):
        Vocab.load(tmp_path / "vocab.json")
    with pytest.raises(ChargptError, match="no such file"):
        Vocab.load(tmp_path / "none.json")


def test_file_round_trip(tmp_path: Path, vocab: Vocab) -> None:
    (tmp_path / "vocab.json").write_text(vocab.to_json())
    assert Vocab.load(tmp_path / "vocab.json") == vocab


def test_json_is_plain() -> None:
    assert json.loads(Vocab("\n a\U0001f600").to_json()) == {"characters": "\n a\U0001f600"}
