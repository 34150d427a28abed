"""Read one file of legacy weights: a line like `# shape: [65, 64]`, then one float32 per line, in row-major order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chargpt.errors import ChargptError, escape

AGAIN = "copy it again"
MAX_SHAPE_LINE = 200  # bytes; `# shape: [1000000, 1000000]` has 27
MAX_VALUE_BYTES = 64  # per value, with its line end and blank lines; Python writes at most 26
CHUNK_BYTES = 1 << 20
SHAPE = re.compile(rb"#\s*shape:\s*\[\s*(\d{1,9})\s*(?:,\s*(\d{1,9})\s*)?,?\s*\]\s*")

Array = NDArray[np.float32]


def read_shape(path: Path, problems: list[str]) -> tuple[int, ...] | None:
    """The shape in the first line of a file. If it has none, adds a message to `problems` and returns None."""
    with path.open("rb") as file:
        line = file.readline(MAX_SHAPE_LINE)
    if not line.strip():
        problems.append(f"{printable(path)}: line 1 is empty, expected a shape like `# shape: [65, 64]`; {AGAIN}")
        return None
    match = SHAPE.fullmatch(line.strip())
    if not match:
        problems.append(
            f"{printable(path)}: line 1 is {line.strip()[:40]!r}, expected a shape like `# shape: [65, 64]`; {AGAIN}"
        )
        return None
    shape = tuple(int(size) for size in match.groups() if size)
    if 0 in shape:
        problems.append(f"{printable(path)}: line 1: shape {list(shape)} has a size of 0; {AGAIN}")
        return None
    return shape


def read_values(path: Path, shape: tuple[int, ...], problems: list[str]) -> Array:
    """The values of a file, float32 in its shape. On a problem, adds it to `problems` and returns an empty array.

    A file that is too small or too large for its shape is refused before memory is allocated for its values.
    Raises ChargptError if a line is too long to be a number.
    """
    count = int(np.prod(shape, dtype=object))
    size = path.stat().st_size
    if size < 2 * count or size > MAX_SHAPE_LINE + MAX_VALUE_BYTES * (count + 16):
        problems.append(f"{path}: {size} bytes cannot hold the {count} values of shape {list(shape)}; {AGAIN}")
        return np.empty(0, np.float32)
    values = np.empty(count, np.float32)
    found, line = 0, 2
    for chunk in _whole_lines(path):
        part = _parse(chunk)
        if part is None or not np.isfinite(part).all():
            problems.append(_first_bad_line(path, chunk, line))
            return np.empty(0, np.float32)
        if found + part.size > count:
            problems.append(f"{path}: more than the {count} values of shape {list(shape)}; {AGAIN}")
            return np.empty(0, np.float32)
        values[found : found + part.size] = part
        found += part.size
        line += chunk.count(b"\n")
    last = chunk.rpartition(b"\n")[2].split() if found == count else []
    if last and float(last[-1]) != float(values[-1]):  # a complete number is exactly a float32, a truncated one is not
        problems.append(
            f"{path}: the last value, {escape(last[-1].decode(), 40)}, is cut off: the file is truncated; {AGAIN}"
        )
    if found < count:
        problems.append(
            f"{path}: {found} values, expected {count} for shape {list(shape)}: the file is truncated; {AGAIN}"
        )
    return values.reshape(shape) if found == count else np.empty(0, np.float32)


def _whole_lines(path: Path) -> Iterator[bytes]:
    """Yield the file after its first line, in pieces that end at a line end."""
    with path.open("rb") as file:
        file.readline(MAX_SHAPE_LINE)
        rest = b""
        while chunk := file.read(CHUNK_BYTES):
            head, newline, tail = chunk.rpartition(b"\n")
            if newline:
                yield rest + head + newline
                rest = tail
            else:
                rest += chunk
                if len(rest) > 2 * CHUNK_BYTES:
                    raise ChargptError(
                        f"{path}: a line of more than {2 * CHUNK_BYTES} bytes is not one number; {AGAIN}"
                    )
        if rest:
            yield rest


def _parse(chunk: bytes) -> Array | None:
    """The numbers in `chunk`, one per line, as float32; None if a line holds anything else.

    They are parsed as float64 first, which does not change the value of a float32.
    """
    if (b" " in chunk or b"\t" in chunk) and any(len(line.split()) > 1 for line in chunk.split(b"\n")):
        return None
    if b"_" in chunk:  # Python reads 1_0 as 10
        return None
    try:
        with np.errstate(over="ignore"):  # too large a number becomes infinite; the caller refuses it
            return np.array(chunk.split(), dtype=np.float64).astype(np.float32)
    except ValueError:
        return None


def _first_bad_line(path: Path, chunk: bytes, line: int) -> str:
    """A message about the first line that is not one finite number. line: number of the chunk's first line."""
    for number, text in enumerate(chunk.split(b"\n"), start=line):
        if text.strip():
            part = _parse(text)
            if part is None or part.size != 1:
                return f"{path}: line {number}: {text.strip()[:40]!r} is not one number; {AGAIN}"
            if not np.isfinite(part[0]):
                value = text.strip()[:40].decode()
                return f"{path}: line {number}: the value is {value}: a diverged model; use an earlier one"
    return f"{path}: not the numbers of a legacy parameter; {AGAIN}"


def printable(path: Path) -> str:
    """The path as text. Its last part, which a stranger chose, is escaped and shortened to 100 characters."""
    return str(path.parent / escape(path.name, 100))
