"""From text to token ids, and from token ids to windows for training and evaluation.

A corpus may be larger than memory: its ids are memory-mapped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chargpt.errors import ChargptError
from chargpt.tensors import open_tensors, write_arrays
from chargpt.text.corpus import read_text
from chargpt.text.documents import SEPARATORS, Documents
from chargpt.text.vocab import Vocab

SHUFFLED = 1 << 16  # windows that are shuffled at once
Ids = NDArray[np.unsignedinteger]
Split = Ids | Documents  # one stream of characters, or documents
Batch = NDArray[np.int64]


def split_sizes(length: int, val_fraction: float) -> tuple[int, int]:
    """How many characters to train on (the text's first part) and to validate on (the rest).

    length: of the text, in characters. The legacy system splits a text in the same way.
    Raises ChargptError if a part has fewer than two characters, the fewest that contain a prediction.
    """
    train = int((1 - val_fraction) * length)
    if min(train, length - train) < 2:
        raise ChargptError(
            f"a text of {length} characters with val_fraction={val_fraction} leaves {train} to train on and"
            f" {length - train} to validate on; each needs at least 2: use a longer text or another val_fraction"
        )
    return train, length - train


def write_tokens(path: str | Path, corpus: str | Path, vocab: Vocab, length: int, val_fraction: float) -> None:
    """Encode a text into a .safetensors file with two 1-D arrays of dtype `vocab.dtype`: `train` and `val`.

    length: of the text, in characters. val_fraction: the part of the text, at its end, that becomes `val`.
    Raises ChargptError if the text is too short to split, has another length, or has a character outside `vocab`.
    """
    train, val = split_sizes(length, val_fraction)
    chunks = (vocab.encode_array(text) for text in read_text(corpus))
    write_arrays(path, vocab.dtype, {"train": train, "val": val}, chunks)


def read_tokens(path: str | Path, vocab: Vocab) -> tuple[Split, Split]:
    """Read training and validation ids: two memory-mapped 1-D arrays of `vocab.dtype`, at least two ids in each.

    If `write_documents` wrote the file, their documents.
    Raises ChargptError if the file holds anything else, or an id outside the vocabulary.
    """
    file = open_tensors(path)
    known = [name for name in ("train", "val") if file.formats.get(name) == f"U{8 * vocab.dtype.itemsize}"]
    arrays = [file.array(name) for name in known]
    if len(arrays) < 2 or any(ids.ndim != 1 or len(ids) < 2 or int(ids.max()) >= len(vocab) for ids in arrays):
        raise ChargptError(
            f"{path}: does not hold ids of the vocabulary's {len(vocab)} characters; run: dvc repro -f prepare"
        )
    kind = file.metadata.get("documents")
    train, val = (Documents.of(ids, kind, vocab) if kind in SEPARATORS else ids for ids in arrays)
    return train, val


def characters_of(split: Split) -> Ids:
    """The ids of a split, (N,) unsigned; those of documents one after another."""
    return split.ids if isinstance(split, Documents) else split


def unseen_share(train_ids: Split, val_ids: Split, vocab_size: int) -> float:
    """The share of the validation characters that do not occur in the training part, from 0 to 1."""
    train, val = (count_ids(ids, vocab_size) for ids in (train_ids, val_ids))
    return float(val[train == 0].sum() / val.sum())


def count_ids(split: Split, vocab_size: int) -> NDArray[np.int64]:
    """How often each id occurs, (vocab_size,). Reads piece by piece, because the ids may be larger than memory."""
    counts, ids = np.zeros(vocab_size, np.int64), characters_of(split)
    for start in range(0, len(ids), SHUFFLED):
        counts += np.bincount(ids[start : start + SHUFFLED], minlength=vocab_size)
    return counts


def epoch_parts(characters: int, block_size: int) -> tuple[int, int]:
    """The parts of an epoch, and the windows of each part, for a text of so many characters.

    An epoch has one window less than there is room for, so that its offset can vary. Only one part at a time is
    shuffled, so that memory does not grow with the text.
    """
    windows = max(1, (characters - 1) // block_size - 1)
    parts = math.ceil(windows / SHUFFLED)
    return parts, windows // parts


def training_batch(ids: Split, block_size: int, batch_size: int, seed: int, step: int) -> tuple[Batch, Batch]:
    """The windows of one step. Together, the steps read the text epoch by epoch, each window once an epoch.

    Each epoch divides the text at another offset and visits its windows in another random order. A batch depends on the
    seed and the step only, not on earlier draws. ids: (N,) unsigned, N > block_size. step: update number, from 0.
    Returns the inputs and the character that follows each of them, both (batch_size, block_size) int64. For documents,
    see `Documents.batch`.
    """
    if isinstance(ids, Documents):
        return ids.batch(block_size, batch_size, seed, step)
    parts, size = epoch_parts(len(ids), block_size)
    draws = np.arange(step * batch_size, (step + 1) * batch_size)
    starts = np.empty(batch_size, np.int64)
    for part in np.unique(draws // size):  # counted through all epochs
        epoch, first = divmod(int(part), parts)
        offset = np.random.default_rng((seed, epoch)).integers(0, len(ids) - parts * size * block_size)
        order = np.random.default_rng((seed, epoch, first)).permutation(size)
        now = draws // size == part
        starts[now] = offset + (first + parts * order[draws[now] % size]) * block_size
    batch = ids[starts[:, None] + np.arange(block_size + 1)].astype(np.int64)
    return np.ascontiguousarray(batch[:, :-1]), np.ascontiguousarray(batch[:, 1:])


def evaluation_batches(ids: Split, block_size: int, batch_size: int) -> Iterator[tuple[Batch, Batch]]:
    """Yield ordered windows that predict every character of `ids` but the first exactly once.

    Yields inputs and targets, both (B, T) int64, with T = block_size and B = batch_size. The last batch of whole
    windows may be smaller. If characters are left over, a last pair of shape (1, remainder) follows. For documents,
    see `Documents.windows`.
    """
    if isinstance(ids, Documents):
        yield from ids.windows(block_size, batch_size)
        return
    full, rest = divmod(len(ids) - 1, block_size)
    for first in range(0, full, batch_size):
        start, end = first * block_size, min(first + batch_size, full) * block_size
        piece = ids[start : end + 1].astype(np.int64)
        yield piece[:-1].reshape(-1, block_size), piece[1:].reshape(-1, block_size)
    if rest:
        piece = ids[-rest - 1 :].astype(np.int64)
        yield piece[None, :-1], piece[None, 1:]
