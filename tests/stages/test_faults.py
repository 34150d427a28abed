"""Killed, interrupted, out of disk space or memory, or with an input gone, a stage leaves whole outputs and one line.

Faults happen at exact moments of a stage that runs without DVC. Afterwards the stage runs again, and must produce the
bytes of an undisturbed run.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from resource import RLIMIT_AS, RLIMIT_FSIZE, setrlimit
from typing import Any

import pytest

from tests.conftest import Shared, clone, environment_of, write_params
from tests.pipeline import STAGES, outputs

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.name == "nt", reason="POSIX signals and limits")]

OLD = b"what an earlier run wrote\n"
# runs a stage as `python -m stages NAME` does; at the `count`-th audit event with `part` in an argument, acts
RUNNER = """
import os, runpy, signal, sys
stage, event, part, count, action = sys.argv[1:6]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores Ctrl-C
left = int(count)
def hook(name, arguments):
    global left
    if left and name == event and any(part in str(a) for a in arguments):
        left -= 1
        if not left:
            os.unlink(action[7:]) if action.startswith("unlink ") else os.kill(os.getpid(), int(action))
sys.addaudithook(hook)
sys.argv = ["stages", stage]
runpy.run_module("stages", run_name="__main__", alter_sys=True)
"""


class Project:
    """A toy project whose stages ran once; `whole` has the sha256 of every output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = environment_of(folder.parent) | {"CHARGPT_SAVE_EVERY_S": "0"}
        self.whole = self.snapshot()

    def snapshot(self) -> dict[str, str]:
        names = [name for stage in STAGES for name in outputs(stage) if (self.folder / name).is_file()]
        return {name: hashlib.sha256((self.folder / name).read_bytes()).hexdigest() for name in names}

    def run(
        self, stage: str, moment: tuple[str, str, int] = ("", "", 0), action: str = "", prepare: Any = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a stage; at the moment comes a signal or an `unlink FILE`. prepare: called in the child process first."""
        command = [sys.executable, "-c", RUNNER, stage, *map(str, moment), action]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, preexec_fn=prepare, capture_output=True, text=True
        )

    def fail(self, stage: str, status: int, *fault: Any, prepare: Any = None) -> str:
        """Run a stage with a fault, check what it leaves, and run it again; what it printed."""
        for name in outputs(stage):
            (self.folder / name).write_bytes(OLD)
        done = self.run(stage, *fault, prepare=prepare)
        assert done.returncode == status, done.stderr
        if status != -signal.SIGKILL:
            assert [*self.folder.rglob(".chargpt-*")] == []
            *before, last = done.stderr.strip().splitlines() or [""]
            assert all(line.startswith(f"{stage}: ") for line in before), done.stderr
            assert re.match(r"error: .|interrupted$|terminated$|train: stopped \(SIG", last), done.stderr
        now, old = self.snapshot(), hashlib.sha256(OLD).hexdigest()
        for name, digest in self.whole.items():
            if name == "metrics/curves.tsv" and stage == "train":  # grows line by line, to be watched
                assert (self.folder / name).read_bytes().endswith(b"\n")
            else:
                assert now[name] in ({digest, old} if name in outputs(stage) else {digest}), name
        self.mend(stage)
        return done.stderr

    def mend(self, stage: str) -> None:
        """Run the stage again."""
        for left in self.folder.rglob(".chargpt-*.tmp"):
            left.unlink()
        done = self.run(stage)
        assert done.returncode == 0, done.stderr
        assert self.snapshot() == self.whole


@pytest.fixture(scope="module")
def project(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Project:
    def fill(folder: Path) -> None:
        project = Project(folder / "project")
        clone(project.folder)
        # 65 characters, as many as the committed legacy model knows, so that it is really migrated
        text = "".join(random.Random(0).choices([chr(code) for code in range(65, 130)], k=6000))
        (project.folder / "data/mine.txt").write_text(text, encoding="utf-8")
        settings = {"corpus": "data/mine.txt", "prompt": "A", "dialect": "relu-embedding", "max_iters": 40}
        write_params(project.folder / "params.yaml", **settings)
        for command in (["init", "-q"], ["add", "--all"]):
            subprocess.run(["git", *command], cwd=project.folder, check=True)
        for stage in STAGES:
            assert project.run(stage).returncode == 0

    filled = shared("faults", fill) / "project"
    return Project(Path(shutil.copytree(filled, tmp_path_factory.mktemp("faults") / "project", symlinks=True)))


@pytest.mark.parametrize(
    ("stage", "event", "part", "count", "number"),
    [  # when a signal is worst: while libraries load, and before the first and the last output is in its place
        ("prepare", "os.rename", "vocab.json", 1, signal.SIGINT),
        ("migrate", "os.rename", "migrated.safetensors", 1, signal.SIGTERM),
        ("train", "import", "numpy.linalg", 1, signal.SIGTERM),  # loaded by torch, which discards exceptions then
        ("train", "os.rename", "checkpoint.safetensors", 5, signal.SIGTERM),
        ("train", "os.rename", "model.safetensors", 1, signal.SIGKILL),
        ("evaluate", "import", "torch", 1, signal.SIGINT),
        ("export", "os.rename", "hf/tokenizer_config.json", 1, signal.SIGTERM),
    ],
)
def test_signals(project: Project, stage: str, event: str, part: str, count: int, number: signal.Signals) -> None:
    status = -number if number == signal.SIGKILL else 128 + number
    project.fail(stage, status, (event, part, count), str(int(number)))


@pytest.mark.parametrize("stage", ["prepare", "train", "export"])
def test_no_disk_space(project: Project, stage: str) -> None:
    assert "File too large" in project.fail(stage, 1, prepare=lambda: setrlimit(RLIMIT_FSIZE, (600, 600)))


def test_no_memory(project: Project) -> None:
    said = project.fail("train", 1, prepare=lambda: setrlimit(RLIMIT_AS, (250 << 20, 250 << 20)))
    assert "error: not enough memory; free some" in said


def test_closed_standard_streams(project: Project) -> None:
    """No output file takes the place of a closed stream, to receive what libraries print."""

    def close() -> None:
        for descriptor in (0, 1, 2):
            os.close(descriptor)

    assert project.run("train", prepare=close).returncode == 0
    assert project.snapshot() == project.whole


def test_nobody_reads_standard_error(project: Project) -> None:
    """A stage that did not write its output must not seem to have succeeded."""

    def broken_pipe() -> None:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 2)

    assert project.run("download", prepare=broken_pipe).returncode != 0
    project.mend("download")


@pytest.mark.parametrize("name", ["config.json", "weights"])
def test_links_in_a_legacy_directory(project: Project, name: str) -> None:
    """An untrusted directory may point anywhere."""
    path, aside = project.folder / "data/legacy" / name, project.folder.parent / name
    path.rename(aside)
    path.symlink_to(aside)
    try:
        done = project.run("migrate")
    finally:
        path.unlink()
        aside.rename(path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: data/legacy/{name}: is a symbolic link"), done.stderr


def test_a_module_of_the_project_does_not_replace_pythons(project: Project) -> None:
    (project.folder / "random.py").write_text("")
    command = [sys.executable, "-m", "stages", "sample"]
    done = subprocess.run(command, cwd=project.folder, env=project.environment, capture_output=True, text=True)
    (project.folder / "random.py").unlink()
    assert done.returncode == 0, done.stderr


def test_an_input_that_vanishes_while_it_is_read(project: Project) -> None:
    text = (project.folder / "data/mine.txt").read_bytes()
    moment = ("open", "mine.txt", 2)  # once for its characters, once to encode it
    for name in outputs("prepare"):
        (project.folder / name).write_bytes(OLD)
    done = project.run("prepare", moment, "unlink data/mine.txt")
    (project.folder / "data/mine.txt").write_bytes(text)
    assert done.returncode == 1
    assert "mine.txt: No such file" in done.stderr
    project.mend("prepare")
