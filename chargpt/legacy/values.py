"""Read one file of legacy weights: a line like `# shape: [65, 64]`, then one float32 per line, in row-major order."""

from __future__ import annotations

import codecs
import math
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chargpt.errors import ChargptError, escape

AGAIN = "copy it again"
MAX_SHAPE_LINE = 200  # bytes; `# shape: [1000000, 1000000]` has 27
MAX_VALUE_BYTES = 64  # per value, with its line end and blank lines; Python writes at most 26
CHUNK_BYTES = 1 << 20
SHAPE = re.compile(rb"#\s*shape:\s*\[\s*([1-9]\d{0,8})\s*(?:,\s*([1-9]\d{0,8})\s*)?,?\s*\]\s*")

Array = NDArray[np.float32]


def read_shape(path: Path) -> tuple[int, ...]:
    """The shape in the first line of a file. Raises ChargptError if the line holds anything else."""
    with path.open("rb") as file:
        line = file.readline(MAX_SHAPE_LINE).removeprefix(codecs.BOM_UTF8).strip()  # PowerShell writes one
    match = SHAPE.fullmatch(line)
    if not match:
        expected = "expected a shape like `# shape: [65, 64]`"
        raise ChargptError(f"{printable(path)}: line 1 is {line[:40].decode(errors='replace')!r}, {expected}; {AGAIN}")
    return tuple(int(size) for size in match.groups() if size)


def read_values(path: Path, shape: tuple[int, ...]) -> Array:
    """The values of a file, float32 in its shape.

    A file that is too small or too large for its shape is refused before memory is allocated for its values.
    Raises ChargptError if the file is refused.
    """
    count = math.prod(shape)
    size = path.stat().st_size
    if size < 2 * count or size > MAX_SHAPE_LINE + MAX_VALUE_BYTES * (count + 16):
        raise ChargptError(f"{path}: {size} bytes cannot hold the {count} values of shape {list(shape)}; {AGAIN}")
    values = np.empty(count, np.float32)
    found, line = 0, 2
    last: list[bytes] = []
    with path.open("rb") as file:
        file.readline(MAX_SHAPE_LINE)
        while chunk := file.read(CHUNK_BYTES) + file.readline():  # whole lines
            part = _parse(chunk)
            if part is None:
                lines = chunk.split(b"\n")
                bad = next(i for i, text in enumerate(lines) if _parse(text) is None)
                shown = lines[bad].strip()[:40].decode(errors="replace")
                problem = f"line {line + bad}: {shown!r} is not one finite number; {AGAIN}"
                raise ChargptError(f"{path}: {problem}, or use an earlier one if the model diverged")
            if found + part.size > count:
                raise ChargptError(f"{path}: more than the {count} values of shape {list(shape)}; {AGAIN}")
            values[found : found + part.size] = part
            found += part.size
            line += chunk.count(b"\n")
            last = chunk.rpartition(b"\n")[2].split()
    if found < count:
        raise ChargptError(f"{path}: {found} values, expected {count} for shape {list(shape)}: truncated; {AGAIN}")
    if last:
        problem = f"no line end after the last value, {escape(last[-1].decode(), 40)}, which may be cut off"
        raise ChargptError(f"{path}: {problem}; {AGAIN}, or add it")
    return values.reshape(shape)


def _parse(chunk: bytes) -> Array | None:
    """The numbers in `chunk`, one per line, as float32; None if a line holds anything else than one finite number.

    They are parsed as float64 first, which does not change the value of a float32.
    """
    several = (b" " in chunk or b"\t" in chunk) and any(len(line.split()) > 1 for line in chunk.split(b"\n"))
    if several or b"_" in chunk:  # Python reads 1_0 as 10
        return None
    try:
        with np.errstate(over="ignore"):  # too large a number becomes infinite
            numbers = np.array(chunk.split(), dtype=np.float64).astype(np.float32)
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def printable(path: Path) -> str:
    """The path as text. Its last part, which is untrusted, is escaped and shortened to 100 characters."""
    return str(path.parent / escape(path.name, 100))
