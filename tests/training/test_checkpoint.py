from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chargpt.errors import ChargptError
from chargpt.tensors import write_tensors
from chargpt.training.checkpoint import CheckpointStore
from chargpt.training.events import Event, Log
from tests.pipeline import ROOT


def reporting(lines: list[str]) -> Callable[[Event], None]:
    return lambda event: lines.append(event.text) if isinstance(event, Log) else None


@pytest.mark.system
def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    """A tmpfs too small for a second copy."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("CANNOT MOUNT A SMALL FILE SYSTEM HERE, the full disk was not tested")
    code = (
        "import torch\n"
        "import sys; from pathlib import Path\n"
        "from chargpt.training.checkpoint import CheckpointStore\n"
        "store = CheckpointStore(Path(sys.argv[1]), {'a': '1'}, report=lambda event: print(event.text))\n"
        "with store.locked():\n"
        "    store.save({'x': torch.ones(40_000)}, {'step': 1})\n"
        "    store.save({'x': torch.zeros(40_000)}, {'step': 2})\n"
        "    tensors, facts = store.load()\n"
        "    assert facts == {'step': 1} and tensors['x'].sum() == 40_000\n"
        "    assert len(list(store.folder.iterdir())) == 2\n"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert done.returncode == 0, done.stderr
    assert "checkpoint not saved (No space left on device); the previous one is kept" in done.stdout


def test_a_checkpoint_holds_what_was_saved(tmp_path: Path) -> None:
    """Also read by another process; the next save replaces it."""
    store = CheckpointStore(tmp_path, {"lr": "1"})
    assert store.load() is None
    weights = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    tensors = {"turned": weights.mT, "none": torch.zeros(0), "count": torch.tensor(7.0)}
    for step in (1, 2):
        assert store.save(tensors, {"step": step, "rows": [[1, 0.5]], "best": float("inf")}) is True
        loaded = CheckpointStore(tmp_path, {"lr": "1"}).load()
        assert loaded
        assert loaded[1] == {"step": step, "rows": [[1, 0.5]], "best": float("inf")}
        assert loaded[0].keys() == tensors.keys()
        assert all(torch.equal(loaded[0][name], t) for name, t in tensors.items())
    loaded[0]["turned"] += 1  # it is not the file's memory
    again = store.load()
    assert again and torch.equal(again[0]["turned"], weights.mT)


def test_the_inputs_name_the_checkpoint(tmp_path: Path) -> None:
    folder = CheckpointStore(tmp_path, {"a": "1", "b": "2"}).folder
    assert folder == CheckpointStore(tmp_path, {"b": "2", "a": "1"}).folder, "in any order"
    assert re.fullmatch("[0-9a-f]{16}", folder.name) and folder.parent == tmp_path
    others = ({"a": "1", "b": "3"}, {"a": "1"}, {"a": "1", "c": "2"}, {"a": "1", "b": "2", "c": "3"}, {})
    assert len({folder, *(CheckpointStore(tmp_path, inputs).folder for inputs in others)}) == 6


def cut(content: bytes) -> bytes:
    return content[:50]


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def replace(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content.replace(old, new)


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        flip,
        lambda content: b"",
        replace(b"step", b"stop"),
        replace(b'"checkpoint"', b'"checkpaint"'),
        replace(b"model.x", b"model.y"),
        replace(b"[100,1]", b"[1,100]"),
        replace(b'"F32"', b'"I32"'),
    ],
    ids=["cut", "bit", "empty", "facts", "key", "name", "shape", "dtype"],
)
def test_a_damaged_checkpoint_is_reported_and_ignored(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    lines: list[str] = []
    store = CheckpointStore(tmp_path, {}, report=reporting(lines))
    store.save({"model.x": torch.zeros(100, 1)}, {"step": 1})
    content = store.path.read_bytes()
    assert damage(content) != content
    store.path.write_bytes(damage(content))
    assert store.load() is None
    assert lines == [f"{store.path} is damaged; ignoring it and training from step 0"]


def test_the_checkpoint_of_another_run_is_ignored(tmp_path: Path) -> None:
    lines: list[str] = []
    one, other = (CheckpointStore(tmp_path, {"lr": lr}, report=reporting(lines)) for lr in ("1", "2"))
    for store in (one, other):
        store.save({"x": torch.zeros(3)}, {"step": 1})
    shutil.copyfile(one.path, other.path)
    assert one.load() and other.load() is None
    write_tensors(other.path, {"x": np.zeros(3, np.float32)}, {})
    assert other.load() is None
    assert lines == [f"{other.path} is damaged; ignoring it and training from step 0"] * 2


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: Any) -> None:
    lines: list[str] = []
    store = CheckpointStore(tmp_path, {}, report=reporting(lines))
    store.save({"x": torch.zeros(3)}, {"step": 1})
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert store.save({"x": torch.ones(3)}, {"step": 2}) is False
    assert len(lines) == 1 and lines[0].startswith("checkpoint not saved (No space left on device); ")
    loaded = store.load()
    assert loaded and loaded[1] == {"step": 1}
    assert not store.due()


def test_abandoned_checkpoints_are_removed(tmp_path: Path) -> None:
    """After two weeks; the temporary file of a killed save goes at once; the run's own stays, however old."""
    store = CheckpointStore(tmp_path, {"lr": "1"})
    for name, days in (("old", 14.01), ("recent", 13.99), (store.folder.name, 99)):
        (tmp_path / name).mkdir()
        for file in ("checkpoint.safetensors", "lock", ".chargpt-1.tmp"):
            (tmp_path / name / file).touch()
        os.utime(tmp_path / name, (time.time() - days * 86400,) * 2)
    (tmp_path / "gone").symlink_to("nowhere")
    with store.locked() as held:
        assert held is store
        assert {p.name for p in tmp_path.iterdir()} == {"recent", "gone", store.folder.name}
        assert {p.name for p in store.folder.iterdir()} == {"checkpoint.safetensors", "lock"}
        store.remove()
    assert {p.name for p in tmp_path.iterdir()} == {"recent", "gone"}
    store.remove()


def test_an_old_checkpoint_of_a_run_that_trains_now_is_kept(tmp_path: Path) -> None:
    old = CheckpointStore(tmp_path, {"lr": "1"})
    with old.locked():
        os.utime(old.folder, (0, 0))
        with CheckpointStore(tmp_path, {"lr": "2"}).locked():
            assert old.folder.exists()
    with CheckpointStore(tmp_path, {"lr": "2"}).locked():
        assert not old.folder.exists()


class Clock:
    """A clock that advances when somebody sleeps, and calls back then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.slept: list[Callable[[], object]] = []
        monkeypatch.setattr("chargpt.training.checkpoint.time.monotonic", lambda: self.now)
        monkeypatch.setattr("chargpt.training.checkpoint.time.sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 1
        self.now += seconds
        if self.slept:
            self.slept.pop(0)()


@pytest.mark.parametrize("finished", [False, True])
def test_a_second_process_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool) -> None:
    """Which ends, and then saves or removes its checkpoint."""
    clock, lines = Clock(monkeypatch), list[str]()
    first, second = (CheckpointStore(tmp_path, {}, report=reporting(lines)) for _ in range(2))
    lock = first.locked()
    lock.__enter__()
    first.save({"x": torch.zeros(1)}, {})

    def end() -> None:
        if finished:
            first.remove()
        lock.__exit__(None, None, None)

    clock.slept = [lambda: None, end]
    with second.locked():
        assert (second.load() is None) == finished
        assert lines == ["waiting for another process that is training the same run"]
    assert not clock.slept
    with first.locked():
        assert len(lines) == 1, "it is free again"


def test_a_second_process_gives_up_after_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    message = "another process is training with the same parameters and data; wait for it or stop it"
    one, other = CheckpointStore(tmp_path, {}), CheckpointStore(tmp_path, {})
    with one.locked(), pytest.raises(ChargptError, match=message), other.locked():
        pass
    assert 1060 <= clock.now < 1060.5
    with other.locked():
        assert one.folder.exists()


def test_the_lock_is_released_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    with pytest.raises(KeyError), CheckpointStore(tmp_path, {}).locked():
        raise KeyError
    with CheckpointStore(tmp_path, {}).locked():
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_reported_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    began = time.monotonic()
    message = rf"{tmp_path}/\w+: cannot be locked \(.*{os.strerror(number)}.*\)\. Where the file system has no locks"
    with pytest.raises(ChargptError, match=message), CheckpointStore(tmp_path, {}).locked():
        pass
    assert time.monotonic() - began < 10


def test_a_fresh_start_removes_the_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, {})
    store.save({"x": torch.zeros(3)}, {"step": 1})
    assert store.load() is not None
    assert CheckpointStore(tmp_path, {}, fresh=True).load() is None
    assert store.load() is None


def test_saves_become_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted from the end of the last save, which may be slow; every 15 seconds by default."""
    clock = Clock(monkeypatch)
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (clock.sleep(1), sync(fd)))
    for options, seconds in (({"save_every_s": 10.0}, 10), ({}, 15)):
        store = CheckpointStore(tmp_path, {}, **options)  # type: ignore[arg-type]
        for _ in range(2):
            clock.now += seconds - 0.125
            assert not store.due()
            clock.now += 0.125
            assert store.due()
            store.save({"x": torch.zeros(1)}, {})
            assert not store.due()
