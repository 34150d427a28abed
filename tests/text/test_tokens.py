from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from chargpt.errors import ChargptError
from chargpt.text import corpus as text
from chargpt.text import tokens as data
from chargpt.text.corpus import read_text, scan_text
from chargpt.text.tokens import (
    epoch_parts,
    evaluation_batches,
    read_tokens,
    split_sizes,
    training_batch,
    unseen_share,
    write_tokens,
)
from chargpt.text.vocab import Vocab


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that every multi-byte character and CRLF falls across pieces somewhere."""
    monkeypatch.setattr(text, "CHUNK", 3)


def corpus(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


TEXTS = [
    "ab\ncd" * 9,
    "\u00e9\u2603\U0001f600" * 7,
    "".join(map(chr, range(0x4E00, 0x4E00 + 1000))) * 2,
    "a\x01\u2028b" * 4,
]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_and_split_equal_the_legacy_systems(tmp_path: Path, text: str) -> None:
    path = corpus(tmp_path, text)
    vocab, length = scan_text(path)
    assert vocab == Vocab(sorted(set(text)))
    assert length == vocab.length == len(text)
    assert vocab.seen_once == sum(text.count(character) == 1 for character in set(text))
    write_tokens(tmp_path / "tokens.safetensors", path, vocab, length, 0.1)
    train, val = read_tokens(tmp_path / "tokens.safetensors", vocab)
    n = int(0.9 * len(text))
    assert vocab.decode(train) == text[:n]
    assert vocab.decode(val) == text[n:]
    assert train.dtype == vocab.dtype == (np.uint16 if len(vocab) > 256 else np.uint8)


@pytest.mark.parametrize("content", ["a text".encode("utf-16-le"), "a text".encode("utf-32"), b"a.txt" + bytes(100)])
def test_a_text_in_another_encoding_is_refused(tmp_path: Path, content: bytes) -> None:
    path = corpus(tmp_path, "")
    path.write_bytes(content)
    with pytest.raises(ChargptError, match=r"run: iconv -f UTF-16LE -t UTF-8 |is not UTF-8"):
        scan_text(path)


def test_the_share_of_unseen_characters() -> None:
    train, val = np.array([0, 1, 1], np.uint8), np.array([1, 2, 3, 0], np.uint8)
    assert unseen_share(train, val, 5) == 0.5
    assert unseen_share(val, train, 5) == 0


@pytest.mark.parametrize(
    ("content", "at"),
    [(b"abcd\xffe", 4), (b"\x80", 0), (b"abc\xe2\x98", 3), ("éééééa".encode() + b"\xc3\x28", 11)],
)
def test_invalid_utf8_names_the_byte(tmp_path: Path, content: bytes, at: int) -> None:
    with pytest.raises(ChargptError, match=rf"corpus\.txt: byte {at} \(0x{content[at]:02x}\) is not UTF-8"):
        scan_text(corpus(tmp_path, content))


def test_a_text_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it is: of a quarter of a million characters at most."""
    path = corpus(tmp_path, "abcd" * 200_000)
    monkeypatch.undo()
    assert max(map(len, read_text(path))) <= 250_000 * 1.05


PIECES = st.sampled_from([b"\r", b"\n", b"\r\n", b"\xef\xbb\xbf", b"\xf0\x9f\x98\x80", b"\xe2\x98", b"a"])


@given(st.binary(max_size=40) | st.lists(PIECES).map(b"".join))
def test_any_bytes_are_decoded_as_python_decodes_them(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """But for line ends, which become LF; a byte-order mark at the start is U+FEFF."""
    path = corpus(tmp_path_factory.mktemp("x"), content)
    try:
        expected = content.decode("utf-8")
    except UnicodeDecodeError as error:
        with pytest.raises(ChargptError, match=f"byte {error.start} "):
            list(read_text(path))
    else:
        expected = expected.replace("\r\n", "\n").replace("\r", "\n")
        assert "".join(read_text(path)) == expected


@pytest.mark.parametrize(("content", "message"), [(b"", "text is empty"), (None, "no such text file")])
def test_empty_and_missing_texts_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = corpus(tmp_path, content) if content is not None else tmp_path / "nothing.txt"
    with pytest.raises(ChargptError, match=message):
        scan_text(path)


def test_a_text_that_changes_while_read_is_refused(tmp_path: Path) -> None:
    path = corpus(tmp_path, "abcabc")
    vocab, length = scan_text(path)
    corpus(tmp_path, "abcabcabc")
    with pytest.raises(ChargptError, match="changed while it was being read"):
        write_tokens(tmp_path / "t", path, vocab, length, 0.5)
    assert [p.name for p in tmp_path.iterdir()] == ["corpus.txt"]


@pytest.mark.parametrize(
    ("length", "val_fraction", "sizes"),
    [
        (1_115_394, 0.1, (1_003_854, 111_540)),  # Tiny Shakespeare, as the legacy system split it
        (20, 0.1, (18, 2)),
        (101, 0.5, (50, 51)),  # the odd character is validated on
        (4, 0.5, (2, 2)),
        (400, 0.99, (4, 396)),
    ],
)
def test_the_first_part_is_trained_on(length: int, val_fraction: float, sizes: tuple[int, int]) -> None:
    assert split_sizes(length, val_fraction) == sizes


@pytest.mark.parametrize(
    ("length", "val_fraction", "train", "val"), [(3, 0.5, 1, 2), (20, 0.05, 19, 1), (3, 0.3, 2, 1), (0, 0.5, 0, 0)]
)
def test_a_split_without_a_prediction_is_refused(length: int, val_fraction: float, train: int, val: int) -> None:
    with pytest.raises(ChargptError) as error:
        split_sizes(length, val_fraction)
    assert str(error.value) == (
        f"a text of {length} characters with val_fraction={val_fraction} leaves {train} to train on and {val} to"
        " validate on; each needs at least 2: use a longer text or another val_fraction"
    )


@given(st.integers(2, 60), st.integers(1, 9), st.integers(1, 5))
def test_evaluation_predicts_each_character_once_in_order(n: int, block_size: int, batch_size: int) -> None:
    ids = np.arange(n, dtype=np.uint8)
    inputs, targets = [], []
    for x, y in evaluation_batches(ids, block_size, batch_size):
        assert x.shape == y.shape
        assert x.shape[0] <= batch_size and x.shape[1] <= block_size
        inputs += x.flatten().tolist()
        targets += y.flatten().tolist()
    assert targets == list(range(1, n))
    assert inputs == list(range(n - 1))


@given(
    st.integers(2, 60), st.integers(1, 9), st.integers(1, 7), st.integers(0, 5), st.integers(0, 3), st.integers(3, 99)
)
def test_each_epoch_reads_each_window_once(
    n: int, block_size: int, batch_size: int, seed: int, epoch: int, shuffled: int
) -> None:
    """Also if an epoch has parts, each of which is spread over the whole text."""
    ids = np.arange(max(n, block_size + 1), dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "SHUFFLED", shuffled)
        parts, size = epoch_parts(len(ids), block_size)
        windows = parts * size
        room = max(1, (len(ids) - 1) // block_size - 1)
        assert room - parts < windows <= room and size <= shuffled
        first = epoch * windows // batch_size
        steps = range(first, first + windows + 1)
        draws = [training_batch(ids, block_size, batch_size, seed, step)[0][:, 0] for step in steps]
    starts = np.concatenate(draws)[epoch * windows - first * batch_size :][:windows].tolist()
    assert len({start % block_size for start in starts}) == 1
    assert len(set(starts)) == windows
    assert min(starts) >= 0 and max(starts) <= len(ids) - block_size - 1
    order = [(start - min(starts)) // block_size for start in starts]
    assert [window % parts for window in order] == [part for part in range(parts) for _ in range(size)]


def test_epochs_differ_in_offset_and_order() -> None:
    ids = np.arange(250, dtype=np.uint8)
    epochs = [training_batch(ids, 6, 40, 0, epoch)[0][:, 0].tolist() for epoch in range(20)]  # 40 windows in each
    assert len({starts[0] % 6 for starts in epochs}) == 6
    assert len({tuple(sorted(range(40), key=starts.__getitem__)) for starts in epochs}) > 15
    assert min(min(starts) for starts in epochs) < 6 and max(max(starts) for starts in epochs) >= 240


@given(st.integers(0, 10), st.integers(0, 10))
def test_training_batches_depend_on_seed_and_step_only(seed: int, step: int) -> None:
    ids = np.arange(30, dtype=np.uint8)
    x, y = training_batch(ids, 5, 7, seed, step)
    assert x.shape == y.shape == (7, 5)
    assert (y == x + 1).all() and x.min() >= 0 and y.max() <= 29
    again, _ = training_batch(ids, 5, 7, seed, step)
    other, _ = training_batch(ids, 5, 7, seed, step + 1)
    assert (x == again).all() and not (x == other).all()


@pytest.mark.parametrize("val", [[0, 3], [0], [], [[0, 1], [1, 0]]])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.bfloat16, torch.float8_e4m3fn, torch.bool])
def test_damaged_tokens_are_refused(tmp_path: Path, val: list[Any], dtype: torch.dtype) -> None:
    """Also ids that would be right in another dtype."""
    val = val if dtype == torch.uint8 else [0, 1]
    save_file({"train": torch.zeros(5).to(dtype), "val": torch.tensor(val).to(dtype)}, tmp_path / "t")
    with pytest.raises(ChargptError, match="t: does not hold ids of the vocabulary's 3 characters; run: dvc repro -f"):
        read_tokens(tmp_path / "t", Vocab("abc"))
