"""Files that appear whole or not at all, and the JSON and tables in them."""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from chargpt.errors import ChargptError

UMASK = os.umask(0)  # there is no other way to read it
os.umask(UMASK)
TEMPORARY = ".chargpt-"  # how the names of temporary files and directories start
MAX_JSON = 100_000  # bytes; a config.json or metrics have hundreds


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to, which then replaces it: `path` is whole or as it was.

    Creates the parent directories. On an exception the temporary file is removed.
    """
    path = Path(path)
    if not path.name or path.is_dir():
        raise ChargptError(f"{str(path)!r} is a directory; give the path of a file to write")
    if path.exists() and not path.is_file():
        raise ChargptError(f"{path}: not a regular file; it would be replaced by one; give another path")
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
        raise ChargptError(f"{path}: no such file; give the path of one that is there") from None
    except (ValueError, RecursionError) as error:
        raise ChargptError(f"{path}: not valid JSON: {error}; mend it or make it again") from None
    if not isinstance(value, dict):
        raise ChargptError(f"{path}: expected a JSON object, {{...}}; mend it or make it again")
    return value


def refuse_link(path: Path) -> None:
    """Raise ChargptError for a link, which points to whatever the stranger chose who made the directory."""
    if path.is_symlink():
        raise ChargptError(f"{path}: a link, which is not followed; put in its place what it points to")


def finite_numbers(values: Mapping[str, Any]) -> dict[str, float]:
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
