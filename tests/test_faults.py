"""Killed, interrupted, out of disk or memory, or with an input gone, a stage leaves whole outputs and one line.

benchmarks/faults.py runs the whole matrix, with what needs root or minutes.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from chargpt.files import write_text
from tests import faults

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and limits")

Project = tuple[Path, dict[str, str], dict[str, str]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("faults") / "project"
    folder.mkdir()
    environment = faults.environment_of(folder.parent)
    return folder, environment, faults.make_project(folder, environment)


def check(project: Project, stage: str, status: int, **fault: object) -> str:
    """Run the stage with a fault and look at what it leaves; what it said."""
    folder, environment, whole = project
    faults.set_back(folder, stage)
    before = faults.leftovers(folder)
    try:
        done = faults.run_stage(folder, stage, environment, **fault)  # type: ignore[arg-type]
        assert faults.problems(folder, stage, whole, done, status) == [], done.stderr
        assert status < 0 or faults.leftovers(folder) == before
    finally:
        for name in faults.outputs(stage):  # the next stage's inputs
            (folder / name).unlink(missing_ok=True)
        assert f"Running stage '{stage}'" in faults.repro(folder, environment)
        assert faults.snapshot(folder) == whole
    return done.stderr


@pytest.mark.parametrize(
    ("stage", "moment", "number", "status"),
    [
        ("download", "first write", signal.SIGTERM, 143),
        ("prepare", "last write", signal.SIGINT, 130),
        ("migrate", "first write", signal.SIGTERM, 143),
        ("train", "middle", signal.SIGTERM, 143),
        ("train", "last write", signal.SIGKILL, -9),
        ("evaluate", "import", signal.SIGINT, 130),
        ("evaluate", "last write", signal.SIGKILL, -9),
        ("sample", "first write", signal.SIGINT, 130),
        ("export", "last write", signal.SIGTERM, 143),
    ],
)
def test_signals(project: Project, stage: str, moment: str, number: int, status: int) -> None:
    check(project, stage, status, moment=faults.moments(stage)[moment], action=f"kill {int(number)}")


@pytest.mark.parametrize("stage", ["prepare", "train", "export"])
def test_no_room_for_the_output(project: Project, stage: str) -> None:
    assert "File too large" in check(project, stage, 1, prepare=faults.limit("FSIZE", 600))


@pytest.mark.parametrize("stage", ["prepare", "evaluate"])
def test_no_memory(project: Project, stage: str) -> None:
    assert "error: not enough memory; free some" in check(project, stage, 1, prepare=faults.limit("AS", 250 << 20))


def test_an_input_that_vanishes_while_it_is_read(project: Project) -> None:
    folder, environment, whole = project
    text = (folder / "data/mine.txt").read_bytes()
    try:
        moment = faults.Moment("open", "mine.txt", 2)  # once for its characters, once to encode it
        faults.set_back(folder, "prepare")
        done = faults.run_stage(folder, "prepare", environment, moment, "unlink data/mine.txt")
        assert faults.problems(folder, "prepare", whole, done, 1) == []
        assert "mine.txt: No such file" in done.stderr
    finally:
        (folder / "data/mine.txt").write_bytes(text)
    faults.repro(folder, environment)
    assert faults.snapshot(folder) == whole


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path: Path) -> None:
    old, folder, new = (tmp_path / f".chargpt-{name}" for name in ("1.tmp", "folder", "2.tmp"))
    folder.mkdir()
    for path in (old, folder / "config.json", new):
        path.write_text("partial")
    for path in (old, folder):
        os.utime(path, times=(time.time() - 90_000,) * 2)
    write_text(tmp_path / "out.txt", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".chargpt-2.tmp", "out.txt"]
