"""Files that are complete or absent, and the JSON and tables in them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from chargpt.errors import ChargptError
from chargpt.files import (
    TEMPORARY,
    atomic_path,
    atomic_write,
    finite_numbers,
    read_json,
    refuse_link,
    temporary_directory,
    write_json,
    write_rows,
    write_text,
)
from tests.pipeline import ROOT


def test_a_file_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.bin"
    with atomic_write(path) as file:
        file.write(b"new")
        assert not path.exists()
        (temporary,) = path.parent.iterdir()
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]
    with atomic_path(str(path)) as other:
        other.write_bytes(b"newer")
        assert path.read_bytes() == b"new"
    assert path.read_bytes() == b"newer"
    assert temporary.name != other.name, "nobody can guess it"
    assert TEMPORARY.fullmatch(temporary.name) and TEMPORARY.fullmatch(other.name)
    assert ".chargpt-*" in (ROOT / ".gitignore").read_text().splitlines()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(KeyError), atomic_write(path) as file:
        file.write(b"half")
        raise KeyError
    assert [(p, p.read_text()) for p in tmp_path.iterdir()] == [(path, "old")]


def test_content_is_synced_before_the_rename(tmp_path: Path, monkeypatch: Any) -> None:
    events = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.fstat(fd).st_size), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("replace"), replace(*paths)))
    write_text(tmp_path / "x", "12345")
    assert events == [5, "replace"]


def test_permissions_of_an_existing_file_are_kept(tmp_path: Path) -> None:
    """A new file has those of any other new file, even if a library replaced the temporary one by a private one."""
    (tmp_path / "ordinary").touch()
    path = tmp_path / "x"
    with atomic_path(path) as temporary:
        temporary.unlink()
        temporary.touch(0o600)
    assert path.stat().st_mode == (tmp_path / "ordinary").stat().st_mode
    for mode in (0o640, 0o777, 0o400):
        path.chmod(mode)
        write_text(path, "x")
        assert path.stat().st_mode & 0o7777 == mode


def test_a_file_is_written_where_permissions_cannot_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refuse)
    write_text(tmp_path / "x", "whole")
    assert (tmp_path / "x").read_text() == "whole"


def test_a_file_that_is_mounted_is_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a single file in a container, which cannot be replaced."""
    path = tmp_path / "x"
    path.write_text("old")
    busy = OSError(errno.EBUSY, "Device or resource busy")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(busy))
    inode = path.stat().st_ino
    write_text(path, "new")
    assert (path.read_text(), path.stat().st_ino, list(tmp_path.iterdir())) == ("new", inode, [path])


def test_an_import_leaves_the_umask_alone() -> None:
    """Another thread of the program would create files that everybody may write."""
    code = "import os; os.umask = None; import chargpt.files, chargpt.tensors"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", ["", ".", "/", "folder", "pipe"])
def test_only_regular_files_are_replaced(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ChargptError, match=r"is not a regular file; give the path of a file to write$"):
        write_text(name, "x")
    assert {p.name for p in tmp_path.iterdir()} == {"folder", "pipe"}
    assert (tmp_path / "pipe").is_fifo()


def test_errors_of_the_operating_system_name_the_file(tmp_path: Path) -> None:
    """A full disk does not say of which file; the name of the temporary one helps nobody."""
    path = tmp_path / "x"
    for error in (OSError(errno.ENOSPC, "No space left"), None, OSError(errno.EACCES, "Not allowed", "other")):
        with pytest.raises(OSError) as caught, atomic_path(path) as temporary:
            raise error or OSError(errno.ENOSPC, "No space left", str(temporary))
        assert caught.value.filename == ("other" if caught.value.errno == errno.EACCES else str(path))


def test_temporary_entries_of_killed_processes_are_removed_after_a_day(tmp_path: Path) -> None:
    """Those whose names this code makes; users' own files with similar names stay, however old they are."""
    old, new, folder = (f".chargpt-{digit * 16}.tmp" for digit in "0af")
    users = [".chargpt-notes.md", ".chargpt-venv/x", ".chargpt-0123.tmp", f"{old}.bak", f"x{old}", "other"]
    for name in (old, new, f"{folder}/x", *users):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() - (86_000 if path.name == new else 86_500),) * 2)
    write_text(tmp_path / "out", "x")
    assert {p.name for p in tmp_path.iterdir()} == {"out", new, *(name.removesuffix("/x") for name in users)}
    assert (tmp_path / ".chargpt-venv/x").exists()


def test_a_temporary_directory_is_removed_with_its_contents(tmp_path: Path) -> None:
    with pytest.raises(KeyError), temporary_directory(tmp_path / "new") as folder:
        assert folder.parent == tmp_path / "new" and TEMPORARY.fullmatch(folder.name)
        (folder / "x").touch()
        raise KeyError
    assert not list((tmp_path / "new").iterdir())


def test_text_and_json_are_written_byte_for_byte(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "é\r\n\u2028\n")
    assert (tmp_path / "x").read_bytes() == b"\xc3\xa9\r\n\xe2\x80\xa8\n"
    write_json(tmp_path / "x", {"b": [1], "a": "é"})
    assert (tmp_path / "x").read_bytes() == b'{\n  "a": "\\u00e9",\n  "b": [\n    1\n  ]\n}\n'
    assert read_json(tmp_path / "x") == {"a": "é", "b": [1]}
    with pytest.raises(ValueError):
        write_json(tmp_path / "x", {"a": float("nan")})
    assert read_json(str(tmp_path / "x")) == {"a": "é", "b": [1]}


INVALID = {
    "not valid JSON: .*; correct or recreate it": [b"", b"{", b"\xff", b"[" * 99_999, b'{"a":1' + b" " * 99_999 + b"}"],
    "expected a JSON object, {...}; correct or recreate it": [b"[1]", b"1"],
}


@pytest.mark.parametrize(("content", "message"), [(x, message) for message, many in INVALID.items() for x in many])
def test_files_without_a_json_object_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """Or with more than is read; a byte-order mark may stand in front."""
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ChargptError, match=rf"x\.json: {message}"):
        read_json(tmp_path / "x.json")
    os.mkfifo(tmp_path / "pipe")  # whose end would never come
    for path in (tmp_path / "none", tmp_path / "pipe", tmp_path):
        with pytest.raises(ChargptError, match=r": no such file; give the path of an existing file"):
            read_json(path)
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "x.json") == {"a": 1}


def test_symbolic_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    refuse_link(tmp_path / "file")
    with pytest.raises(ChargptError, match=r"link: is a symbolic link, and links are not followed here"):
        refuse_link(tmp_path / "link")


def test_finite_numbers_are_kept() -> None:
    largest = 1.7976931348623157e308
    numbers = {"a": 0, "b": -1.5, "c": largest, "d": -largest, "e": int(largest)}
    others = {"f": True, "g": float("nan"), "h": float("inf"), "i": 10**400, "j": "1", "k": None, "l": [1]}
    assert finite_numbers(numbers | others) == numbers


def test_a_table_is_tab_separated(tmp_path: Path) -> None:
    write_rows(tmp_path / "x.tsv", ["step", "character"], [(1, "\t"), (2, 'a"b'), (3, "\u2603")])
    expected = 'step\tcharacter\n1\t"\t"\n2\t"a""b"\n3\t\u2603\n'
    assert (tmp_path / "x.tsv").read_bytes() == expected.encode()
