from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from chargpt.errors import ChargptError
from chargpt.text import documents
from chargpt.text.documents import PAD, Documents, for_validation, list_note, read_documents, write_documents
from chargpt.text.tokens import evaluation_batches, read_tokens, training_batch
from chargpt.text.vocab import Vocab
from tests.pipeline import ROOT

VOCAB = Vocab("\nabcdefghijklmnopqrstuvwxyz")
WORDS = ["".join(map(chr, np.random.default_rng(i).integers(97, 123, 1 + i % 11))) for i in range(900)]


@pytest.mark.parametrize(
    ("kind", "text", "found"),
    [
        ("lines", "a\n\n\nbc\r\nd", ["a\n", "bc\n", "d\n"]),
        ("paragraphs", "\n\na\nb\n\n\n\nc\nd\n", ["a\nb\n\n", "c\nd\n\n"]),
        ("lines", "\n\n", []),
    ],
)
def test_documents_end_with_their_separator(tmp_path: Path, kind: str, text: str, found: list[str]) -> None:
    (tmp_path / "text").write_bytes(text.encode())
    assert list(read_documents(tmp_path / "text", kind)) == found


def write(folder: Path, words: list[str], name: str = "list") -> tuple[Documents, Documents]:
    (folder / name).write_text("\n".join(words) + "\n")
    write_documents(folder / "tokens", folder / name, VOCAB, "lines", 0.2)
    train, val = read_tokens(folder / "tokens", VOCAB)
    assert isinstance(train, Documents) and isinstance(val, Documents)
    return train, val


def lines(split: Documents) -> list[str]:
    return VOCAB.decode(split.ids).split("\n")[1:-1]


def test_the_order_of_a_list_and_new_lines_move_no_document(tmp_path: Path) -> None:
    """Equal documents are on one side, and no document is lost."""
    train, val = (lines(split) for split in write(tmp_path, WORDS + WORDS[:50]))
    assert Counter(train + val) == Counter(WORDS + WORDS[:50])
    assert not set(train) & set(val)
    assert len(val) / len(train + val) == pytest.approx(0.2, abs=0.05)
    more_train, more_val = (lines(split) for split in write(tmp_path, ["new", *sorted(WORDS)]))
    assert set(more_train) - {"new"} == set(train) and set(more_val) - {"new"} == set(val)


def test_what_is_counted_is_told(tmp_path: Path) -> None:
    train, val = (len(split.ends) for split in write(tmp_path, WORDS + WORDS[:50]))
    found = write_documents(tmp_path / "tokens", tmp_path / "list", VOCAB, "lines", 0.2)
    repeated, share = 950 - len(set(WORDS)), val / 950
    assert found == f"{train} documents to train on, {val} to validate on ({share:.1%}); {repeated} are repetitions"
    (tmp_path / "list").write_text("a\n")
    with pytest.raises(ChargptError, match=r"list: [01] documents to train on and [01] to validate on; each needs at"):
        write_documents(tmp_path / "tokens", tmp_path / "list", VOCAB, "lines", 0.5)
    assert for_validation("a\n", 0.999) and not for_validation("a\n", 0.001)


@pytest.fixture
def split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Documents:
    monkeypatch.setattr(documents, "PART", 200)  # several parts
    return write(tmp_path, WORDS)[0]


def rows_of(inputs: np.ndarray, targets: np.ndarray) -> list[str]:
    """The text of each row; a row begins after a line break, or continues a document."""
    found = []
    for row, following in zip(inputs, targets, strict=True):
        length = int((following != PAD).sum())
        assert (following[length:] == PAD).all()
        assert (row[1:length] == following[: length - 1]).all()
        found.append(("" if row[0] == 0 else "+") + VOCAB.decode(following[:length]))
    return found


def test_an_epoch_reads_each_document_once_in_batches_of_like_length(split: Documents) -> None:
    """Each epoch in another order; the same step always has the same batch."""
    epochs, step, work = [], 0, 0
    for _ in range(2):
        read: list[str] = []
        while len(read) < len(split.ends):
            inputs, targets = training_batch(split, 16, 8, 1, step)
            assert inputs.dtype == targets.dtype == np.int64 and inputs.size <= 8 * 16
            read += rows_of(inputs, targets)
            work += inputs.size
            step += 1
        assert sorted(read) == sorted(f"{word}\n" for word in lines(split))
        epochs.append(read)
    assert epochs[0] != epochs[1]
    assert 2 * (len(split) - 1) > 0.8 * work, "at most a fifth is padding"
    again = training_batch(Documents(split.ids, split.ends), 16, 8, 1, step - 1)
    assert all(map(np.array_equal, again, (inputs, targets)))
    assert rows_of(*training_batch(split, 16, 8, 2, 0)) != rows_of(*training_batch(split, 16, 8, 1, 0))


def test_long_documents_are_cut_into_windows_that_continue(split: Documents) -> None:
    read = [row for step in range(40) for row in rows_of(*training_batch(split, 4, 8, 1, step))]
    assert max(map(len, read)) <= 5 and "+" in {row[0] for row in read}
    batches = [pair for pair in evaluation_batches(split, 4, 8)]
    assert sum(int((targets != PAD).sum()) for _, targets in batches) == len(split) - 1
    counts = Counter("".join(row.lstrip("+") for pair in batches for row in rows_of(*pair)))
    assert counts == Counter(VOCAB.decode(split.ids[1:]))


def test_a_list_is_noticed(tmp_path: Path) -> None:
    note = list_note(ROOT / "constraints.txt")
    assert note and "looks like a list (lines of " in note and "% of them in order)" in note
    (tmp_path / "list").write_text("\n".join(WORDS))
    note = list_note(tmp_path / "list")
    assert note and note.endswith("list -S documents=lines") and "order" not in note


@pytest.mark.parametrize("name", ["README.md", "LICENSE", "dvc.yaml", "chargpt/inference/kernel.py", "docs/sweeps.md"])
def test_prose_and_code_are_not_taken_for_lists(name: str) -> None:
    assert list_note(ROOT / name) is None
