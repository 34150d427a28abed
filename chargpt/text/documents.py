"""Documents: a corpus that is a set of lines or paragraphs, each a text of its own.

A document begins after a line break and ends with its separator. It goes to training or validation by a hash of its
characters: equal documents never stand on both sides, and the order of the file means nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chargpt.errors import ChargptError
from chargpt.tensors import write_arrays
from chargpt.text.corpus import read_text
from chargpt.text.vocab import Vocab

SEPARATORS = {"lines": "\n", "paragraphs": "\n\n"}
PART = 1 << 16  # documents that are shuffled and sorted at once, so that memory is bounded
TOGETHER = 200  # documents that are encoded at once: encoding a short text is slow
REMEMBERED = 4_000_000  # documents that are compared to count equal ones
Rows = tuple[NDArray[np.int64], NDArray[np.int64]]  # the position of each row's first prediction, and their number
Batch = NDArray[np.int64]
PAD = -1  # the target of a position that is not predicted


def read_documents(path: str | Path, kind: str) -> Iterator[str]:
    """Yield each document of a UTF-8 file with its separator. kind: a key of SEPARATORS. Empty ones are left out."""
    separator, rest = SEPARATORS[kind], ""
    for text in read_text(path):
        *found, rest = (rest + text).split(separator)
        yield from (document.strip("\n") + separator for document in found if document.strip("\n"))
    if rest.strip("\n"):
        yield rest.strip("\n") + separator


def for_validation(document: str, val_fraction: float) -> bool:
    """Whether a document is for validation. Neither the other documents nor `seed` matter: runs stay comparable."""
    digest = hashlib.blake2b(document.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < val_fraction * 2**64


def write_documents(path: str | Path, corpus: str | Path, vocab: Vocab, kind: str, val_fraction: float) -> str:
    """Encode documents into a .safetensors file with two 1-D arrays of dtype `vocab.dtype`: `train` and `val`.

    Returns how many documents each holds, and how many of all occurred before in the corpus, in words.
    Raises ChargptError if one of the two has no document.
    """
    characters, documents, seen, repeated = [1, 1], [0, 0], set[int](), 0
    for document in read_documents(corpus, kind):
        side = for_validation(document, val_fraction)
        characters[side] += len(document)
        documents[side] += 1
        repeated += hash(document) in seen
        if len(seen) < REMEMBERED:
            seen.add(hash(document))
    if not all(documents):
        raise ChargptError(
            f"{corpus}: {documents[0]} documents to train on and {documents[1]} to validate on; each needs at least 1:"
            f" use more documents, or another val_fraction than {val_fraction}"
        )

    def chunks() -> Iterator[NDArray[np.unsignedinteger]]:
        for side in (False, True):
            yield vocab.encode_array("\n")
            mine = (d for d in read_documents(corpus, kind) if for_validation(d, val_fraction) == side)
            while piece := "".join(islice(mine, TOGETHER)):
                yield vocab.encode_array(piece)

    write_arrays(path, vocab.dtype, dict(zip(("train", "val"), characters, strict=True)), chunks(), {"documents": kind})
    train, val = documents
    share, copies = val / (train + val), f"; {repeated} are repetitions" if repeated else ""
    return f"{train} documents to train on, {val} to validate on ({share:.1%}){copies}"


@dataclass(eq=False)
class Documents:
    """One side of a corpus of documents. A row of a batch holds one document, or a window of a long one, and is padded.

    ids: (N,) unsigned: a line break, then each document with its separator. ends: (D,) int64, the position behind each.
    """

    ids: NDArray[np.unsignedinteger]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, ids: NDArray[np.unsignedinteger], kind: str, vocab: Vocab) -> Documents:
        """The documents in ids, as `write_documents` writes them."""
        breaks = np.flatnonzero(ids == vocab.encode("\n")[0])
        ends = breaks[1:] if kind == "lines" else breaks[1:][np.diff(breaks) == 1]
        return cls(ids, ends + 1)

    def __len__(self) -> int:
        """The characters, the first line break included."""
        return len(self.ids)

    @property
    def parts(self) -> int:
        """How many parts an epoch has, each of PART documents or fewer."""
        return math.ceil(len(self.ends) / PART)

    def rows(self, block_size: int, part: int) -> Rows:
        """The rows of every document of a part; a document longer than block_size has several, which continue it."""
        chosen = np.arange(part, len(self.ends), self.parts)
        starts = np.where(chosen > 0, self.ends[chosen - 1], 1)
        lengths = self.ends[chosen] - starts
        counts = -(-lengths // block_size)
        windows = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        return (
            np.repeat(starts, counts) + windows * block_size,
            np.minimum(block_size, np.repeat(lengths, counts) - windows * block_size),
        )

    def batch(self, block_size: int, batch_size: int, seed: int, step: int) -> tuple[Batch, Batch]:
        """The rows of one step: documents of like length, up to batch_size * block_size characters with their padding.

        Together, the steps read every document once an epoch. A batch depends on the seed and the step only.
        Returns the inputs and the character that follows each of them, PAD behind the end; both (B, T) int64.
        """
        budget = batch_size * block_size
        steps = _steps(self, block_size, budget)
        epoch, step = divmod(step, sum(steps))
        part = int(np.searchsorted(np.cumsum(steps), step, side="right"))
        return self.take(*_shuffled(self, block_size, budget, seed, epoch, part)[step - sum(steps[:part])])

    def windows(self, block_size: int, batch_size: int) -> Iterator[tuple[Batch, Batch]]:
        """Like `batch`, for all documents, in an order that is always the same."""
        for part in range(self.parts):
            for batch in cut(self.rows(block_size, part), batch_size * block_size):
                yield self.take(*batch)

    def take(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[Batch, Batch]:
        """Inputs and targets of rows, (B, T) int64 each."""
        places = np.arange(lengths.max())
        at = np.minimum(starts[:, None] + places, len(self.ids) - 1)
        targets = np.where(places < lengths[:, None], self.ids[at].astype(np.int64), PAD)
        return self.ids[at - 1].astype(np.int64), targets


@lru_cache(maxsize=1)
def _steps(split: Documents, block_size: int, budget: int) -> list[int]:
    """How many batches of `budget` characters each part has."""
    return [len(cut(split.rows(block_size, part), budget)) for part in range(split.parts)]


@lru_cache(maxsize=1)
def _shuffled(split: Documents, block_size: int, budget: int, seed: int, epoch: int, part: int) -> list[Rows]:
    """The batches of a part in an epoch, in their order."""
    rng = np.random.default_rng((seed, epoch, part))
    batches = cut(split.rows(block_size, part), budget, rng)
    return [batches[i] for i in rng.permutation(len(batches))]


def cut(rows: Rows, budget: int, rng: np.random.Generator | None = None) -> list[Rows]:
    """Rows of like length together, each batch with its padding no larger than the budget if it has more than one row.

    rng: shuffles rows of equal length. The batches begin with the longest rows.
    """
    starts, lengths = rows
    order = rng.permutation(len(starts)) if rng else np.arange(len(starts))
    order = order[np.argsort(-lengths[order], kind="stable")]
    batches, first = [], 0
    while first < len(order):
        batch = order[first : first + max(1, budget // int(lengths[order[first]]))]
        batches.append((starts[batch], lengths[batch]))
        first += len(batch)
    return batches


def list_note(path: str | Path) -> str | None:
    """A line for the user if a text looks like a list, or is sorted; None if not. Reads its beginning.

    The lines of a list are short, not indented, and not ended by punctuation, and none is empty. Those of a sorted text
    follow one another in the order of their characters.
    """
    text = next(read_text(path), "")
    lines = text.split("\n")[:-1]
    if len(lines) < 50 or "" in lines[:-1]:
        return None
    words, width = (int(np.median([len(part) for part in parts])) for parts in (map(str.split, lines), lines))
    odd = sum(line[0].isspace() or line[-1] in ".,;:!?-{}()" for line in lines) / len(lines)
    in_order = sum(a <= b for a, b in pairwise(lines)) / (len(lines) - 1)
    if in_order < 0.75 and (words > 6 or odd > 0.2):
        return None
    order = f", {in_order:.0%} of them in order" if in_order >= 0.75 else ""
    return (
        f"{path} looks like a list (lines of {width} characters{order}); to train on each line as a text of its own,"
        f" run: dvc exp run -S corpus={path} -S documents=lines"
    )
