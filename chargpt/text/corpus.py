"""Read a text piece by piece, so that it may be larger than memory, and find its vocabulary. Does not load torch."""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from chargpt.errors import ChargptError
from chargpt.text.vocab import Vocab, code_points

CHUNK = 1 << 18  # characters; a piece of this size fits the CPU's cache, so the table look-up is fast


def read_text(path: str | Path) -> Iterator[str]:
    """Yield the characters of a UTF-8 file, in pieces of bounded size.

    As in the legacy system, CRLF and CR become LF, and a byte-order mark is a character, U+FEFF, like any other.
    Raises ChargptError if there is no such file, or if a byte is not UTF-8; the message gives its position.
    """
    path = Path(path)
    if not path.is_file():
        raise ChargptError(f"{path}: no such text file; set `corpus` to the path of a UTF-8 text")
    with path.open("rb") as raw, io.TextIOWrapper(raw, encoding="utf-8") as file:
        try:
            while text := file.read(CHUNK):
                if text.count("\0") > len(text) // 100:
                    raise ChargptError(
                        f"{path}: many NUL characters, so it is not a UTF-8 text; if it is UTF-16, for example, run:"
                        f" iconv -f UTF-16LE -t UTF-8 {shlex.quote(str(path))} > utf8.txt"
                    )
                yield text
        except UnicodeDecodeError as error:  # its object is what was last read, after what was already decoded
            at = raw.tell() - len(error.object) + error.start
            byte = error.object[error.start]
            raise ChargptError(f"{path}: byte {at} (0x{byte:02x}) is not UTF-8; save the text as UTF-8") from None


def scan_text(path: str | Path) -> tuple[Vocab, int]:
    """The vocabulary of a text (its distinct characters, sorted) and its length in characters.

    Raises ChargptError if `read_text` raises it, or if the text is empty.
    """
    counts = np.zeros(0x110000, np.int64)  # one for each Unicode code point
    for text in read_text(path):
        found = np.bincount(code_points(text))
        counts[: found.size] += found
    if not (length := int(counts.sum())):
        raise ChargptError(f"{path}: the text is empty; it needs at least a few thousand characters to learn from")
    return Vocab(map(chr, np.flatnonzero(counts).tolist()), int((counts == 1).sum()), length), length
