"""Text to token ids, in constant memory; the split; training and evaluation windows.

A corpus may be larger than memory: text streams through in pieces, ids are memory-mapped.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chargpt.errors import ChargptError
from chargpt.tensors import read_arrays, write_arrays
from chargpt.vocab import Vocab, code_points

CHUNK_BYTES = 1 << 18  # fits the processor's cache, where the table look-up is fastest
Ids = NDArray[np.unsignedinteger]


def read_text(path: str | Path) -> Iterator[str]:
    """The characters of a UTF-8 file, in pieces of bounded size.

    As the legacy system's text mode read them: CRLF and CR become LF. A byte-order mark is dropped.
    Raises ChargptError if there is no such file or a byte is not UTF-8, naming the byte.
    """
    path = Path(path)
    if not path.is_file():
        raise ChargptError(f"{path}: no such text file; set `corpus` to the path of a UTF-8 text")
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset = 0  # of the first byte not yet decoded
    with path.open("rb") as file:
        while True:
            chunk = file.read(CHUNK_BYTES)
            pending = decoder.getstate()[0]
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                at = offset + error.start
                byte = (pending + chunk)[error.start]
                raise ChargptError(f"{path}: byte {at} (0x{byte:02x}) is not UTF-8; save the text as UTF-8") from None
            if offset == 0 and text.startswith("\ufeff"):
                text = text[1:]
            offset += len(pending) + len(chunk) - len(decoder.getstate()[0])
            yield newlines.decode(text, final=not chunk)
            if not chunk:
                return


def scan_text(path: str | Path) -> tuple[Vocab, int]:
    """The vocabulary of a text (its distinct characters, sorted) and its length in characters.

    Raises ChargptError as `read_text` does, and if the text is empty.
    """
    seen = np.zeros(0x110000, dtype=bool)  # one flag per Unicode code point
    length = 0
    for text in read_text(path):
        codes = code_points(text)
        seen[codes] = True
        length += codes.size
    if length == 0:
        raise ChargptError(f"{path}: the text is empty; it needs at least a few thousand characters to learn from")
    return Vocab(map(chr, np.flatnonzero(seen).tolist())), length


def split_sizes(length: int, val_fraction: float) -> tuple[int, int]:
    """Characters to train on (the first) and to validate on (the last), as the legacy system split them.

    Raises ChargptError if either part has fewer than two characters, which is one prediction.
    """
    train = int((1 - val_fraction) * length)
    if min(train, length - train) < 2:
        raise ChargptError(
            f"a text of {length} characters with val_fraction={val_fraction} leaves {train} to train on and"
            f" {length - train} to validate on; each needs at least 2: use a longer text or another val_fraction"
        )
    return train, length - train


def write_tokens(path: str | Path, corpus: str | Path, vocab: Vocab, length: int, val_fraction: float) -> None:
    """Encode a text of `length` characters into a .safetensors file of 1-D `train` and `val`, dtype `vocab.dtype`."""
    train, val = split_sizes(length, val_fraction)
    chunks = (vocab.encode_array(text) for text in read_text(corpus))
    write_arrays(path, vocab.dtype, {"train": train, "val": val}, chunks)


def read_tokens(path: str | Path, vocab: Vocab) -> tuple[Ids, Ids]:
    """Training and validation ids, memory-mapped 1-D unsigned arrays of at least two.

    Raises ChargptError if the file holds something else, or an id that the vocabulary does not have.
    """
    train, val = read_arrays(path, ["train", "val"])
    for name, ids in (("train", train), ("val", val)):
        if ids.ndim != 1 or ids.dtype != vocab.dtype or len(ids) < 2 or int(ids.max()) >= len(vocab):
            raise ChargptError(
                f"{path}: {name} does not hold ids of the vocabulary's {len(vocab)} characters;"
                " run `dvc repro -f prepare` to make it again"
            )
    return train, val


def training_batch(ids: Ids, block_size: int, batch_size: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Random windows for one update: the same for the same seed and step, whatever was drawn before.

    ids: (N,) with N > block_size. Returns inputs and their next characters, both (batch_size, block_size) int64.
    """
    starts = np.random.default_rng((seed, step)).integers(0, len(ids) - block_size, batch_size)
    windows = ids[starts[:, None] + np.arange(block_size + 1)].astype(np.int64)
    batch = torch.from_numpy(windows)
    return batch[:, :-1].contiguous(), batch[:, 1:].contiguous()


def evaluation_batches(ids: Ids, block_size: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Ordered windows that predict every character of `ids` but the first exactly once.

    Yields inputs and targets (B, T) int64, T = block_size and B = batch_size except in the last full batch,
    and at the end one (1, remainder) if the last window is partial.
    """
    full, rest = divmod(len(ids) - 1, block_size)
    for first in range(0, full, batch_size):
        start, end = first * block_size, min(first + batch_size, full) * block_size
        piece = torch.from_numpy(ids[start : end + 1].astype(np.int64))
        yield piece[:-1].view(-1, block_size), piece[1:].view(-1, block_size)
    if rest:
        piece = torch.from_numpy(ids[-rest - 1 :].astype(np.int64))
        yield piece[None, :-1], piece[None, 1:]
