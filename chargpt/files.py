"""Write files that are complete or absent; read and write JSON and tables."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from chargpt.errors import ChargptError

TEMPORARY = re.compile(r"\.chargpt-[0-9a-f]{16}\.tmp")  # the names of temporary files and directories, and no others
MAX_JSON = 100_000  # bytes; a config.json or a metrics file has hundreds


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; then that file replaces `path` in one step.

    So `path` is always complete, or as it was before. Creates the parent directories. On an exception the temporary
    file is removed. Raises ChargptError if `path` exists and is not a regular file.
    """
    path = Path(path)
    if not path.name or (path.exists() and not path.is_file()):
        raise ChargptError(f"{str(path)!r} is not a regular file; give the path of a file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path.parent)
    try:
        temporary.touch(0o666, exist_ok=False)  # the system applies the umask
        mode = (path if path.exists() else temporary).stat().st_mode & 0o777
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        with suppress(OSError):  # some file systems do not permit it
            temporary.chmod(mode)
        try:
            os.replace(temporary, path)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            shutil.copyfile(temporary, path)  # a single file that is mounted into a container cannot be replaced
    except OSError as error:
        if error.filename in (None, str(temporary)):  # the error of a full disk names no file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def temporary_directory(parent: Path) -> Iterator[Path]:
    """Yield a new directory in `parent`, which is created if needed. The directory is removed with its contents."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = temporary_path(parent)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def temporary_path(folder: Path) -> Path:
    """A new name in `folder`. Removes what killed processes left there: entries unchanged for a day with such names."""
    for left in folder.glob(".chargpt-*.tmp"):
        if TEMPORARY.fullmatch(left.name):
            with suppress(OSError):  # it belongs to another user, or is already gone
                if left.lstat().st_mtime < time.time() - 86400:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
    return folder / f".chargpt-{secrets.token_hex(8)}.tmp"  # nobody can guess it and put a link there


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a binary file to write to; it appears at `path` complete, or not at all."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        yield file


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically. Line ends are not changed."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: str | Path, value: Mapping[str, Any], *, sort_keys: bool = True) -> None:
    """Write JSON atomically: sorted keys, two-space indent, final newline. The same value gives the same bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=sort_keys, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a small file with a JSON object; its values are not checked. Raises ChargptError if it holds none."""
    if not Path(path).is_file():
        raise ChargptError(f"{path}: no such file; give the path of an existing file")
    with Path(path).open("rb") as file:
        return parse_json(file.read(MAX_JSON), path)


def parse_json(text: str | bytes, source: str | Path) -> dict[str, Any]:
    """The JSON object in a text. source: its name in messages. Raises ChargptError if it holds none."""
    try:
        value = json.loads(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ChargptError(f"{source}: not valid JSON: {error}; correct or recreate it") from None
    if not isinstance(value, dict):
        raise ChargptError(f"{source}: expected a JSON object, {{...}}; correct or recreate it")
    return value


def refuse_link(path: Path) -> None:
    """Raise ChargptError if `path` is a symbolic link: in an untrusted directory it may point at any file."""
    if path.is_symlink():
        raise ChargptError(
            f"{path}: is a symbolic link, and links are not followed here; replace it with its target, or if DVC made"
            f" it, run: dvc unprotect {shlex.quote(str(path))}"
        )


def finite_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The entries whose values are finite numbers. In a metrics file, these are all entries."""
    return {name: v for name, v in values.items() if type(v) in (int, float) and abs(v) <= sys.float_info.max}


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object from its entries; an `object_pairs_hook` for json.loads.

    Raises ValueError if a key occurs twice, because another program might read the other of the two values.
    """
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def write_rows(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table atomically as tab-separated values, a format that DVC plots."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([header, *rows])
