"""Training that is killed, stopped, orphaned, edited and damaged, under a real `dvc repro`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.conftest import Shared, commit, environment_of, hear_hangups, set_value, until, write_params

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.name == "nt", reason="POSIX signals")]
OUTPUTS = ["artifacts/model.safetensors", "metrics/curves.tsv"]
LONG = {"max_iters": 800, "eval_interval": 200, "dropout": 0.1}  # a few seconds
Start = Callable[..., subprocess.Popen[str]]
ORPHANED = "the DVC process that started this training has ended"
STARTED = [0.0]  # when each process was started; the system's own record of it is coarser


@pytest.fixture(scope="module")
def repo(shared: Shared, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the toy project after an uninterrupted run of some seconds."""

    def fill(folder: Path) -> None:
        project = shutil.copytree(template, folder / "project", symlinks=True)
        write_params(project / "params.yaml", corpus="data/mine.txt", prompt="9", **LONG)
        train = ["dvc", "repro", "--single-item", "train"]
        subprocess.run(train, cwd=project, env=environment_of(folder), check=True, capture_output=True)
        assert not states(project), "a completed run leaves no state"
        commit(project, "reference")

    reference = shared("reference", fill) / "project"
    return Path(shutil.copytree(reference, tmp_path_factory.mktemp("copy") / "repo", symlinks=True))


@pytest.fixture(scope="module")
def reference(repo: Path) -> dict[str, str]:
    """Hashes of the uninterrupted run's outputs."""
    return trained(repo)


@pytest.fixture
def start(repo: Path, environment: dict[str, str]) -> Start:
    """Starts `dvc repro -f --single-item train` in a process group of its own."""

    def start(*command: str, **changes: str) -> subprocess.Popen[str]:
        STARTED.append(time.time())
        return subprocess.Popen(
            command or ("dvc", "repro", "-f", "-s", "--no-run-cache", "train"),
            cwd=repo,
            env=environment | {"CHARGPT_SAVE_EVERY_S": "0.1"} | changes,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=hear_hangups,
        )

    return start


def trained(repo: Path) -> dict[str, str]:
    return {name: hashlib.md5((repo / name).read_bytes()).hexdigest() for name in OUTPUTS}


def states(repo: Path) -> list[Path]:
    return list((repo / ".dvc/tmp/chargpt").glob("*/checkpoint.safetensors"))


def trainers(repo: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.cmdline()[-2:] == ["stages", "train"] and Path(process.cwd()) == repo:
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for_save(repo: Path) -> None:
    """Until the trainer that was started last has saved its state."""
    until(lambda: trainers(repo) and any(p.exists() and p.stat().st_mtime > STARTED[-1] for p in states(repo)))


def wait_for_training(repo: Path) -> None:
    """Until the trainer that was started last has written the first row of its curve."""
    curve = repo / "metrics/curves.tsv"
    until(lambda: trainers(repo) and curve.exists() and curve.stat().st_mtime > STARTED[-1])


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def test_killed_at_random_moments_ends_with_the_same_bytes(repo: Path, start: Start, reference: dict[str, str]) -> None:
    """Saving every 20 ms, so that some kills fall into a save; each start must get further than the last."""
    rng = random.Random(0)
    continued = 0
    for _ in range(2):
        process = start(CHARGPT_SAVE_EVERY_S="0.02")
        wait_for_save(repo)
        time.sleep(rng.uniform(0.05, 0.3))
        for trainer in trainers(repo):
            trainer.kill()
        status, output = finish(process)
        continued += "continuing at step" in output
        assert status != 0, output
        assert "Traceback" not in output
        beside = len(list(states(repo)[0].parent.iterdir()))
        assert beside <= 3  # the state, the lock, and at most one half-written copy
    status, output = finish(start())
    assert (status, "continuing at step" in output) == (0, True), output
    assert continued == 1
    assert not states(repo)
    assert trained(repo) == reference


@pytest.mark.parametrize(
    "number", [signal.SIGINT, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGHUP, signal.SIGUSR1))]
)
def test_a_signal_saves_and_says_so(repo: Path, start: Start, reference: dict[str, str], number: int) -> None:
    process = start(CHARGPT_SAVE_EVERY_S="1000")
    wait_for_training(repo)
    trainer = trainers(repo)[0]
    trainer.send_signal(number)
    status, output = finish(process)
    assert status != 0
    name = signal.Signals(number).name
    assert output.count(f"train: stopped ({name}); saved at step ") == 1, output
    assert f"exited with {128 + number}" in output
    assert "Traceback" not in output
    status, output = finish(start())
    assert (status, "continuing at step" in output) == (0, True), output
    assert trained(repo) == reference


def test_an_orphan_saves_and_ends_and_never_runs_beside_its_successor(
    repo: Path, start: Start, reference: dict[str, str]
) -> None:
    process = start(CHARGPT_SAVE_EVERY_S="1000")
    wait_for_training(repo)
    orphan = trainers(repo)[0]
    process.kill()
    process.wait()
    status, output = finish(start())
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE, output
    assert status == 0, output
    assert "continuing at step" in output
    assert process.stdout
    assert f"stopped ({ORPHANED}); saved at step" in process.stdout.read()
    process.stdout.close()
    assert trained(repo) == reference


@pytest.mark.slow
def test_orphans_of_torchrun_save_and_end(repo: Path, start: Start, reference: dict[str, str]) -> None:
    """DVC dies before torchrun has started the processes that train, so that none of them ever had it as ancestor."""
    params = (repo / "params.yaml").read_text()
    set_value(repo / "params.yaml", launch="torchrun --standalone --nproc-per-node 2")
    try:
        process = start(CHARGPT_SAVE_EVERY_S="1000")
        until(lambda: trainers(repo) and any("libtorch_cpu" in m.path for m in trainers(repo)[0].memory_maps()))
        assert len(trainers(repo)) == 1, "torchrun itself"
        process.kill()
        output, _ = process.communicate(timeout=120)
        assert output.count(f"stopped ({ORPHANED}); saved at step") == 1, output
        assert "Traceback" not in output
        until(lambda: not trainers(repo))
        status, output = finish(start())
        assert (status, "continuing at step" in output) == (0, True), output
    finally:
        (repo / "params.yaml").write_text(params)


@pytest.mark.slow
def test_impatient_signals_do_not_disturb_the_ending(repo: Path, start: Start, reference: dict[str, str]) -> None:
    process = start(CHARGPT_SAVE_EVERY_S="1000")
    wait_for_training(repo)
    trainer = trainers(repo)[0]
    with contextlib.suppress(psutil.NoSuchProcess):
        while trainer.is_running() and trainer.status() != psutil.STATUS_ZOMBIE:
            trainer.send_signal(signal.SIGINT)
            time.sleep(0.005)
    status, output = finish(process)
    assert (status != 0, output.count("stopped (SIGINT)"), "Traceback" in output) == (True, 1, False), output
    status, output = finish(start())
    assert (status, "continuing at step" in output) == (0, True), output


def test_an_edit_while_training_fails_the_stage(repo: Path, start: Start, reference: dict[str, str]) -> None:
    files = {repo / "params.yaml": ("lr: ", "lr: 0.0123 # "), repo / "chargpt/model/gpt.py": ('"""', '"""Edited. ')}
    before = {path: path.read_text() for path in files}
    lock = (repo / "dvc.lock").read_bytes()
    process = start()
    wait_for_save(repo)
    for path, words in files.items():
        path.write_text(before[path].replace(*words, 1))
    status, output = finish(process)
    for path, text in before.items():
        path.write_text(text)
    assert status != 0
    said = "error: changed while training ran: chargpt/model/gpt.py, parameter lr; dvc.lock would describe a model"
    assert said in output, output
    assert (repo / "dvc.lock").read_bytes() == lock
    status, output = finish(start())  # the edit undone: what was trained is not lost
    assert (status, "continuing at step" in output) == (0, True), output
    assert trained(repo) == reference


@pytest.mark.slow
def test_a_queued_experiment_resumes(repo: Path, start: Start) -> None:
    """`--temp` runs in a directory of its own, which is gone after a kill; the state is in the main repository."""
    command = ("dvc", "exp", "run", "--temp", "-C", "data/mine.txt", "-S", "lr=0.02", "-S", "max_iters=500")
    shutil.rmtree(repo / ".dvc/tmp/chargpt", ignore_errors=True)
    process = start(*command)
    until(lambda: states(repo))
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.cmdline()[-2:] == ["stages", "train"]:
            child.send_signal(signal.SIGINT)
    status, output = finish(process)
    assert (status != 0, "saved at step" in output) == (True, True), output
    status, output = finish(start(*command))
    assert (status, "continuing at step" in output) == (0, True), output
