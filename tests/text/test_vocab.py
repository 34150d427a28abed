from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chargpt.errors import ChargptError
from chargpt.text.vocab import Vocab

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(text)
def test_round_trip(s: str) -> None:
    vocab = Vocab(sorted(set(s)))
    assert vocab.decode(vocab.encode(s)) == s
    assert "".join(json.loads(vocab.to_json())["characters"]) == "".join(vocab.itos)
    assert vocab.encode(s) == [sorted(set(s)).index(c) for c in s]  # the legacy system's ids


@pytest.mark.parametrize(("size", "dtype"), [(1, np.uint8), (256, np.uint8), (257, np.uint16), (70_000, np.uint32)])
def test_ids_have_the_smallest_dtype(size: int, dtype: type) -> None:
    characters = [chr(i) for i in range(size + 2048) if not 0xD800 <= i < 0xE000][:size]
    vocab = Vocab(characters)
    assert vocab.dtype == dtype
    assert vocab.encode_array(characters[-1] + characters[0]).tolist() == [size - 1, 0]
    assert vocab.encode_array("").dtype == dtype


def test_ids_decode_from_any_iterable() -> None:
    vocab = Vocab("abc")
    assert Vocab("\ud7ff\ue000").encode("\ue000\ud7ff") == [1, 0], "the neighbours of surrogates are characters"
    assert vocab.decode(np.array([2, 1], np.uint8)) == "cb" == vocab.decode(iter([2, 1]))
    for bad in (-1, 3):
        with pytest.raises(ChargptError, match="outside the vocabulary of 3"):
            vocab.decode([bad])


ORDER = "the vocabulary's characters are not distinct and in code-point order"


@pytest.mark.parametrize(
    ("characters", "message"),
    [
        ("", "a vocabulary needs at least one character"),
        ("ba", ORDER),
        ("aba", ORDER),
        ("abb", ORDER),
        (["ab"], "vocabulary entry 'ab' is not a single character"),
        (["a", ""], "vocabulary entry '' is not a single character"),
        (["\ud800"], r"vocabulary entry '\ud800' is not a single character"),
        (["\udfff"], r"vocabulary entry '\udfff' is not a single character"),
        ([1], "vocabulary entry '1' is not a single character"),
        ([["a"]], "vocabulary entry \"['a']\" is not a single character"),
        (["x" * 99], f"vocabulary entry '{'x' * 20}' is not a single character"),
    ],
)
def test_invalid_vocabularies_are_refused(characters: list[str], message: str) -> None:
    with pytest.raises(ChargptError) as error:
        Vocab(characters)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "character", "at"),
    [("axbx", "x", 1), ("ab\U0001f600", "\U0001f600", 2), ("`", "`", 0), ("a\ud800", "\ud800", 1)],
)
def test_the_first_unknown_character_is_named_with_its_position(text: str, character: str, at: int) -> None:
    """Inside the known range, above and below it."""
    with pytest.raises(ChargptError) as error:
        Vocab("abz").encode(text)
    assert str(error.value) == (
        f"character {character!r} (at position {at}) is not in the vocabulary of 3 characters; leave it out, or train"
        " on a text that has it"
    )


def test_equality_of_vocabularies() -> None:
    vocab = Vocab("ab")
    assert vocab == Vocab(["a", "b"])
    assert vocab != Vocab("ac") and vocab != Vocab("abc") and vocab != "ab" and vocab != ("a", "b")
    assert len(vocab) == 2
    assert repr(vocab) == "Vocab('ab')"


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"{}", b'{"characters": 1}', b'{"characters": "ba"}', b"[" * 100_000, b"\xff\xfe"),
        *(b'{"characters": "ab", "seen_once": 3, "length": 2}', b'{"characters": "ab", "length": 0}'),
        *(b'{"characters": "ab", "length": 1e999}', b'{"characters": "ab", "length": 1%s}' % (b"0" * 30)),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vocab.json").write_bytes(content)
    with pytest.raises(ChargptError, match=r"vocab\.json: not a vocabulary \(.*\); run: dvc repro -f prepare$"):
        Vocab.load(tmp_path / "vocab.json")


def test_a_vocabulary_is_read_as_written(tmp_path: Path, vocab: Vocab) -> None:
    path = tmp_path / "vocab.json"
    path.write_text(vocab.to_json())
    assert Vocab.load(path) == vocab == Vocab.load(str(path))
    path.write_text(Vocab("\u00e9", 1, 20).to_json())
    assert path.read_text() == '{"characters": "\\u00e9", "seen_once": 1, "length": 20}\n'
    assert (Vocab.load(path).seen_once, Vocab.load(path).length) == (1, 20)
    path.write_bytes('{"characters": "aé☃"}'.encode())
    assert Vocab.load(path) == Vocab("aé☃")
    for missing in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ChargptError, match=r"no such file; run: dvc repro$"):
            Vocab.load(missing)
