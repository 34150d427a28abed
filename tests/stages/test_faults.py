"""Killed, interrupted, out of disk or memory, or with an input gone, a stage leaves whole outputs and one line.

benchmarks/faults.py runs the whole matrix, with what needs root or minutes.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests import faults

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.name == "nt", reason="POSIX signals and limits")]

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
        ("train", "numpy", signal.SIGTERM, 143),
        ("sample", "numpy", signal.SIGINT, 130),
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


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_no_memory(project: Project, stage: str) -> None:
    assert "error: not enough memory; free some" in check(project, stage, 1, prepare=faults.limit("AS", 250 << 20))


@pytest.mark.parametrize("stage", ["download", "train"])
def test_closed_standard_streams(project: Project, stage: str) -> None:
    """No file of ours takes their place, to get what libraries print."""

    def close() -> None:
        for descriptor in (0, 1, 2):
            os.close(descriptor)

    folder, environment, whole = project
    faults.set_back(folder, stage)
    assert faults.run_stage(folder, stage, environment, prepare=close).returncode == 0
    now = faults.snapshot(folder)
    assert {name: now[name] for name in faults.outputs(stage)} == {n: whole[n] for n in faults.outputs(stage)}
    faults.repro(folder, environment)


def test_nobody_reads_standard_error(project: Project) -> None:
    """A stage that did not write its output must not seem to have succeeded."""

    def broken_pipe() -> None:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 2)

    folder, environment, whole = project
    faults.set_back(folder, "download")
    assert faults.run_stage(folder, "download", environment, prepare=broken_pipe).returncode != 0
    faults.repro(folder, environment)
    assert faults.snapshot(folder) == whole


def test_an_input_that_is_a_pipe(project: Project) -> None:
    folder, environment, whole = project
    vocab = folder / "artifacts/vocab.json"
    vocab.unlink()
    os.mkfifo(vocab)
    try:
        for stage in ("migrate", "train"):
            faults.set_back(folder, stage)
            done = faults.run_stage(folder, stage, environment)
            assert done.returncode == 1
            assert done.stderr.endswith("error: artifacts/vocab.json: no such file; run `dvc repro` to make it\n")
    finally:
        vocab.unlink()
    faults.repro(folder, environment)
    assert faults.snapshot(folder) == whole


def test_links_in_a_legacy_directory(project: Project) -> None:
    """A stranger's directory may point anywhere."""
    folder, environment, _ = project
    for name in ("config.json", "weights"):
        path, aside = folder / "data/legacy" / name, folder.parent / name
        path.rename(aside)
        path.symlink_to(aside)
        try:
            done = faults.run_stage(folder, "migrate", environment)
        finally:
            path.unlink()
            aside.rename(path)
        assert (done.returncode, done.stderr) == (
            1,
            f"error: data/legacy/{name}: is a symbolic link; links are not followed here: replace it with its target\n",
        )


def test_metrics_that_are_none(project: Project) -> None:
    """The card shows finite numbers, whatever else the file holds."""
    folder, environment, whole = project
    metrics = folder / "metrics/evaluate.json"
    before = metrics.read_bytes()
    for depth in range(940, 1000, 4):
        metrics.write_text('{"a": 10, "b": 1' + "0" * 400 + ', "c": NaN, "d": ' + "[" * depth + "]" * depth + "}")
        done = faults.run_stage(folder, "export", environment)
        assert "Traceback" not in done.stderr and done.returncode in (0, 1), done.stderr
    metrics.write_text('{"a": 10, "b": 1' + "0" * 400 + ', "c": NaN, "d": true}')
    assert faults.run_stage(folder, "export", environment).returncode == 0
    card = (folder / "artifacts/hf/README.md").read_text()
    assert "| `a` | `10` |" in card and not any(f"| `{name}` |" in card for name in "bcd")
    metrics.write_bytes(before)
    faults.set_back(folder, "export")
    faults.repro(folder, environment)
    assert faults.snapshot(folder) == whole


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
