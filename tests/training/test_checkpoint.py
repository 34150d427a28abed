from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from chargpt.errors import ChargptError
from chargpt.tensors import write_tensors
from chargpt.training.checkpoint import CheckpointStore
from chargpt.training.events import Event, Log


def reporting(lines: list[str]) -> Callable[[Event], None]:
    return lambda event: lines.append(event.text) if isinstance(event, Log) else None


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


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *[(b"step", b"stop"), (b'"checkpoint"', b'"checkpaint"'), (b"model.x", b"model.y")],
        *[(b"[100,1]", b"[1,100]"), (b'"F32"', b'"I32"'), (bytes(7), b"bit" + bytes(4)), (bytes(50), b"")],
    ],
)
def test_a_damaged_checkpoint_is_reported_and_ignored(tmp_path: Path, old: bytes, new: bytes) -> None:
    """In its facts, the key of the metadata, a tensor's name, shape, dtype or values, or cut."""
    lines: list[str] = []
    store = CheckpointStore(tmp_path, {}, report=reporting(lines))
    store.save({"model.x": torch.zeros(100, 1)}, {"step": 1})
    head, found, tail = store.path.read_bytes().rpartition(old)
    assert found
    store.path.write_bytes(head + new + tail)
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


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    lines: list[str] = []
    store = CheckpointStore(tmp_path, {}, report=reporting(lines))
    store.save({"x": torch.zeros(3)}, {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        assert store.save({"x": torch.ones(5000)}, {"step": 2}) is False
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert lines == ["checkpoint not saved (File too large); the previous one is kept; free some disk space"], (
        "as on a full disk"
    )
    loaded = store.load()
    assert loaded and loaded[1] == {"step": 1}
    assert [path.name for path in store.folder.iterdir()] == ["checkpoint.safetensors"] and not store.due()


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
    """Which ends, perhaps by an error, and then saves or removes its checkpoint."""
    clock, lines = Clock(monkeypatch), list[str]()
    first, second = (CheckpointStore(tmp_path, {}, report=reporting(lines)) for _ in range(2))
    lock = first.locked()
    lock.__enter__()
    first.save({"x": torch.zeros(1)}, {})

    def end() -> None:
        if finished:
            first.remove()
        with suppress(KeyError):
            lock.__exit__(KeyError, KeyError(), None)

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
