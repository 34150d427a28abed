"""Files that are whole or not there, and safetensors: the only importer of that library."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import secrets
import shutil
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from chargpt.errors import ChargptError, shown

UMASK = os.umask(0)  # there is no other way to read it
os.umask(UMASK)
TEMPORARY = ".chargpt-"  # how the names of temporary files and directories start
MAX_HEADER = 20_000_000  # bytes; a thousand layers and every character that there is need 17 million
MAX_JSON = 100_000  # bytes; a config.json or metrics have hundreds
SAFETENSORS_NAMES = {"uint8": "U8", "uint16": "U16", "uint32": "U32"}


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to, which then replaces it: `path` is whole or as it was.

    Creates the parent directories. On an exception the temporary file is removed.
    """
    path = Path(path)
    if not path.name or path.is_dir():
        raise ChargptError(f"{str(path)!r} is a directory; give the path of a file to write")
    if path.exists() and not path.is_file():
        raise ChargptError(f"{path}: not a regular file; it would be replaced by one")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}.tmp")  # nobody can put a link there
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # a library may have made it for its owner alone
        temporary.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~UMASK)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename in (None, str(temporary)):  # a full disk does not say which file it was
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that were killed: those that nobody has written to for a day."""
    for left in folder.glob(f"{TEMPORARY}*"):
        with suppress(OSError):  # somebody else's, or gone already
            if left.lstat().st_mtime < time.time() - 86400:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` complete, or not at all."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        yield file


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically, line ends as they are."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write JSON atomically: sorted keys, two-space indent, final newline; the same value gives the same bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a small file, its values unchecked. Raises ChargptError if there is none."""
    try:
        if not Path(path).is_file():
            raise FileNotFoundError
        with Path(path).open("rb") as file:
            value = json.loads(file.read(MAX_JSON).decode("utf-8-sig"))
    except FileNotFoundError:
        raise ChargptError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise ChargptError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ChargptError(f"{path}: expected a JSON object, {{...}}")
    return value


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The entries that are finite numbers: of a metrics file, all."""
    return {name: v for name, v in values.items() if type(v) in (int, float) and abs(v) <= sys.float_info.max}


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for `object_pairs_hook`; one with a key twice means one thing to us and another to others."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


def write_rows(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table as tab-separated values atomically, as DVC plots it."""
    table = io.StringIO()
    csv.writer(table, delimiter="\t", lineterminator="\n").writerows([header, *rows])
    write_text(path, table.getvalue())


def write_arrays(
    path: str | Path, dtype: np.dtype[Any], sizes: Mapping[str, int], chunks: Iterable[NDArray[Any]]
) -> None:
    """Write 1-D tensors of one unsigned dtype to a .safetensors file without holding them in memory.

    sizes: name -> number of elements, in the order in which `chunks` delivers them, split anywhere.
    Raises ChargptError if the chunks do not add up to the sizes.
    """
    header, end = {}, 0
    for name, size in sizes.items():
        start, end = end, end + size * dtype.itemsize
        header[name] = {"dtype": SAFETENSORS_NAMES[dtype.name], "shape": [size], "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # the format aligns the data to 8 bytes
    with atomic_write(path) as file:
        file.write(struct.pack("<Q", len(head)) + head)
        written = 0
        for chunk in chunks:
            written += file.write(chunk.astype(dtype.newbyteorder("<"), copy=False).tobytes())
        if written != end:
            raise ChargptError(f"{path}: the text changed while it was being read; run again")


def read_arrays(path: str | Path, names: Iterable[str]) -> list[NDArray[Any]]:
    """Memory-map the named 1-D arrays of a .safetensors file. Raises ChargptError if it is not such a file."""
    with open_tensors(path) as file:
        formats = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (no mapping)
        missing = sorted(name for name in names if formats.get(name) not in SAFETENSORS_NAMES.values())
        if missing:
            raise ChargptError(f"{path}: has no tensor {', '.join(missing)} of ids; run `dvc repro` to make it again")
        return [file.get_tensor(name).numpy() for name in names]


@contextmanager
def open_tensors(path: str | Path) -> Iterator[Any]:
    """A safetensors file, open for reading as memory-mapped torch tensors.

    Raises ChargptError with the reason if it is missing, empty, truncated or no safetensors file at all.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ChargptError(f"{path}: no such file")
    with path.open("rb") as start:
        length = start.read(8)
        if not length:
            raise ChargptError(f"{path}: the file is empty")
        if int.from_bytes(length, "little") > MAX_HEADER:
            raise ChargptError(f"{path}: truncated or not a safetensors file (its header would be too long)")
        header = start.read(int.from_bytes(length, "little"))
    try:
        json.loads(header, object_pairs_hook=unique_keys)  # of a tensor that is there twice, the library takes one
    except (ValueError, RecursionError) as error:
        raise ChargptError(f"{path}: truncated or not a safetensors file ({shown(error)})") from None
    try:
        opened = safe_open(path, framework="pt")
    except RuntimeError as error:  # torch's word for a file larger than the address space
        raise ChargptError(f"{path}: cannot be mapped into memory ({shown(error)})") from None
    except SafetensorError as error:
        raise ChargptError(f"{path}: truncated or not a safetensors file ({shown(error)})") from None
    try:
        with opened as file:
            yield file
    except SafetensorError as error:
        raise ChargptError(f"{path}: truncated or not a safetensors file ({shown(error)})") from None


def write_tensors(path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Write torch tensors atomically; the same tensors and metadata give the same bytes.

    metadata: at most one key, because the library writes several in random order.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    assert len(metadata) <= 1, "several metadata keys are written in random order"
    with atomic_path(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=dict(metadata))
        except SafetensorError as error:  # the library's wrapping of what the operating system said
            code = re.search(r"os error (\d+)", str(error))
            number = int(code[1]) if code else errno.EIO
            raise OSError(number, os.strerror(number), str(path)) from None
