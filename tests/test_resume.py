"""Training that is killed, stopped, orphaned, edited and damaged, under a real `dvc repro`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from chargpt.resume import State, code_files
from tests.conftest import IDENTITY, Run, write_params
from tests.pipeline import ROOT

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
OUTPUTS = ["artifacts/model.safetensors", "metrics/curves.tsv", "metrics/evaluate.json", "dvc.lock"]
LONG = {"max_iters": 500, "eval_interval": 250, "dropout": 0.1}  # a few seconds
Start = Callable[..., subprocess.Popen[str]]
STARTED = [0.0]  # when each process was started; the system's own record of it is coarser


@pytest.fixture(scope="module")
def reference(repo: Path, run: Run) -> dict[str, str]:
    """Hashes of an uninterrupted run's outputs."""
    write_params(repo / "params.yaml", corpus="data/mine.txt", prompt="9", **LONG)
    run("dvc", "repro")
    run("git", "add", "--all")
    run("git", *IDENTITY, "commit", "-q", "-m", "reference")
    assert not states(repo), "a completed run leaves no state"
    return hashes(repo)


@pytest.fixture
def start(repo: Path, environment: dict[str, str]) -> Start:
    """Starts `dvc repro -f --single-item train` in a process group of its own."""

    def start(*command: str, **changes: str) -> subprocess.Popen[str]:
        STARTED.append(time.time())
        return subprocess.Popen(
            command or ("dvc", "repro", "-f", "-s", "--no-run-cache", "train"),
            cwd=repo,
            env=environment | {"CHARGPT_SAVE_EVERY_S": "0.02"} | changes,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start


def hashes(repo: Path) -> dict[str, str]:
    return {name: hashlib.md5((repo / name).read_bytes()).hexdigest() for name in OUTPUTS}


def trained(repo: Path) -> dict[str, str]:
    return {name: digest for name, digest in hashes(repo).items() if name in OUTPUTS[:2]}


def states(repo: Path) -> list[Path]:
    return list((repo / ".dvc/tmp/chargpt").glob("*/state.safetensors"))


def trainers(repo: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if "stages.train" in process.cmdline() and Path(process.cwd()) == repo:
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def wait_for_save(repo: Path) -> None:
    """Until the trainer that was started last has saved its state."""
    wait_for(lambda: trainers(repo) and any(p.exists() and p.stat().st_mtime > STARTED[-1] for p in states(repo)))


def wait_for_training(repo: Path) -> None:
    """Until the trainer that was started last has written the first row of its curve."""
    curve = repo / "metrics/curves.tsv"
    wait_for(lambda: trainers(repo) and curve.exists() and curve.stat().st_mtime > STARTED[-1])


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def kill_after_a_save(repo: Path, start: Start, later_s: float = 0) -> tuple[int, str]:
    """SIGKILL the trainer some time after it saved its state; what DVC then returned and printed."""
    process = start()
    wait_for_save(repo)
    time.sleep(later_s)
    for trainer in trainers(repo):
        trainer.kill()
    return finish(process)


def test_killed_at_random_moments_ends_with_the_same_bytes(repo: Path, start: Start, reference: dict[str, str]) -> None:
    """Saving every 20 ms, so that some kills fall into a save; each start must get further than the last."""
    rng = random.Random(0)
    continued = 0
    for _ in range(5):
        status, output = kill_after_a_save(repo, start, later_s=rng.uniform(0.05, 0.5))
        continued += "continuing at step" in output
        assert status != 0, output
        assert "Traceback" not in output
        beside = len(list(states(repo)[0].parent.iterdir()))
        assert beside <= 3  # the state, the lock, and at most one half-written copy
    status, output = finish(start())
    assert (status, "continuing at step" in output) == (0, True), output
    assert continued == 4
    assert not states(repo)
    finish(start("dvc", "repro"))
    assert hashes(repo) == reference


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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
    assert trained(repo).items() <= reference.items()


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
    assert "stopped (DVC, which started this process, is gone); saved at step" in process.stdout.read()
    process.stdout.close()
    assert trained(repo).items() <= reference.items()


def test_an_orphan_while_torch_loads_saves_and_ends(repo: Path, start: Start, reference: dict[str, str]) -> None:
    process = start(CHARGPT_SAVE_EVERY_S="1000")
    wait_for(lambda: trainers(repo) and any("libtorch_cpu" in m.path for m in trainers(repo)[0].memory_maps()))
    process.kill()
    output, _ = process.communicate(timeout=120)
    assert "stopped (DVC, which started this process, is gone); saved at step" in output
    status, output = finish(start())
    assert (status, "continuing at step" in output) == (0, True), output
    assert trained(repo).items() <= reference.items()


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


@pytest.mark.parametrize("value", ["often", "-1", "nan", "1,5"])
def test_seconds_between_saves_must_be_a_number(
    repo: Path, start: Start, reference: dict[str, str], value: str
) -> None:
    status, output = finish(start(CHARGPT_SAVE_EVERY_S=value))
    assert status != 0
    assert f"error: CHARGPT_SAVE_EVERY_S is '{value}'; it must be a number of seconds, at least 0" in output
    assert "Traceback" not in output


def test_a_damaged_state_is_reported_and_ignored(repo: Path, start: Start, reference: dict[str, str]) -> None:
    kill_after_a_save(repo, start)
    state = states(repo)[0]
    content = bytearray(state.read_bytes())
    content[-10] ^= 1
    state.write_bytes(content)
    status, output = finish(start())
    assert (status, "is damaged; ignored" in output, "continuing" in output) == (0, True, False), output
    assert trained(repo).items() <= reference.items()


def test_states_that_nobody_came_back_to_are_removed(repo: Path, run: Run, reference: dict[str, str]) -> None:
    folder = repo / ".dvc/tmp/chargpt"
    for name, days in (("old", 15), ("recent", 13)):
        (folder / name).mkdir(parents=True)
        (folder / name / "state.safetensors").touch()
        os.utime(folder / name, (time.time() - days * 86400,) * 2)
    run("dvc", "repro", "-f", "-s", "--no-run-cache", "train")
    assert [p.name for p in folder.iterdir()] == ["recent"]
    shutil.rmtree(folder)


def test_a_fresh_start_on_request(repo: Path, start: Start, reference: dict[str, str]) -> None:
    kill_after_a_save(repo, start)
    status, output = finish(start(CHARGPT_FRESH="1"))
    assert (status, "continuing" in output) == (0, False), output
    assert trained(repo).items() <= reference.items()


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("params.yaml", "lr: ", "lr: 0.0123 # ", "parameter lr"),
        ("chargpt/model.py", '"""', '"""Edited. ', "chargpt/model.py"),
        ("artifacts/vocab.json", "\n", " \n", "artifacts/vocab.json"),
    ],
)
def test_an_edit_while_training_fails_the_stage(
    repo: Path, start: Start, run: Run, reference: dict[str, str], name: str, old: str, new: str, message: str
) -> None:
    before = (repo / name).read_text()
    lock = (repo / "dvc.lock").read_bytes()
    process = start()
    wait_for_save(repo)
    (repo / name).unlink()  # may be a link into the cache
    (repo / name).write_text(before.replace(old, new, 1))
    status, output = finish(process)
    (repo / name).write_text(before)
    assert status != 0
    assert f"error: changed while training ran: {message}; dvc.lock would describe a model" in output, output
    assert (repo / "dvc.lock").read_bytes() == lock
    status, output = finish(start())  # the edit undone: what was trained is not lost
    assert (status, "continuing at step" in output) == (0, True), output
    assert trained(repo).items() <= reference.items()


def test_a_changed_parameter_starts_afresh(repo: Path, start: Start, run: Run, reference: dict[str, str]) -> None:
    kill_after_a_save(repo, start)
    status, output = finish(start("dvc", "exp", "run", "-S", "lr=0.02"))
    assert (status, "continuing" in output) == (0, False), output
    shutil.rmtree(repo / ".dvc/tmp/chargpt")
    run("git", "reset", "-q", "--hard")
    run("dvc", "checkout", "-q", "--force")
    assert hashes(repo) == reference


def test_a_queued_experiment_resumes(repo: Path, start: Start, run: Run, reference: dict[str, str]) -> None:
    """`--temp` runs in a directory of its own, which is gone after a kill; the state is in the main repository."""
    command = ("dvc", "exp", "run", "--temp", "-C", "data/mine.txt", "-S", "lr=0.02", "-S", "max_iters=1000")
    shutil.rmtree(repo / ".dvc/tmp/chargpt", ignore_errors=True)
    process = start(*command)
    wait_for(lambda: states(repo))
    for child in psutil.Process(process.pid).children(recursive=True):
        if "stages.train" in child.cmdline():
            child.send_signal(signal.SIGINT)
    status, output = finish(process)
    assert (status != 0, "saved at step" in output) == (True, True), output
    status, output = finish(start(*command))
    assert (status, "continuing at step" in output) == (0, True), output


def test_a_full_disk_keeps_the_last_good_state(tmp_path: Path) -> None:
    """A tmpfs too small for a second copy of the state."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("CANNOT MOUNT A SMALL FILE SYSTEM HERE, the full disk was not tested")
    code = (
        "import torch\n"
        "from chargpt.resume import State\n"
        "state = State({'a': '1'})\n"
        "with state.locked():\n"
        "    state.save({'x': torch.ones(40_000)}, {'step': 1})\n"
        "    state.save({'x': torch.zeros(40_000)}, {'step': 2})\n"
        "    tensors, facts = state.load()\n"
        "    assert facts == {'step': 1} and tensors['x'].sum() == 40_000\n"
        "    assert len(list(state.folder.iterdir())) == 2\n"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"DVC_ROOT": str(folder), "PYTHONPATH": str(Path(__file__).parents[1])},
            capture_output=True,
            text=True,
        )
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert done.returncode == 0, done.stderr
    assert "state not saved (No space left on device); the one before it is kept" in done.stderr


def test_the_state_of_another_run_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    one, other = State({"lr": "1"}), State({"lr": "2"})
    (tmp_path / ".dvc/tmp/chargpt").mkdir(parents=True)
    (tmp_path / ".dvc/tmp/chargpt/gone").symlink_to("nowhere")
    with one.locked(), other.locked():
        one.save({"x": torch.zeros(3)}, {"step": 1})
        loaded = one.load()
        assert loaded and loaded[1] == {"step": 1}
        shutil.copyfile(one.path, other.path)
        assert other.load() is None
    assert "is damaged; ignored, training starts again" in capsys.readouterr().err


def test_the_code_is_known_wherever_python_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the project lies below Python's own directory, as in a container's /usr/src."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "prefix", str(ROOT.parent))
    assert {Path("chargpt/resume.py"), Path("chargpt/errors.py")} <= set(code_files())


def test_trainings_share_the_cores() -> None:
    """Beside one other training, and two workers of DVC's queue, a run takes its part; told a number, it obeys."""
    code = (
        "import torch; torch.set_num_threads(12); from chargpt.resume import share_threads; share_threads();"
        " print(torch.get_num_threads())"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}

    def threads(**more: str) -> int:
        command = [sys.executable, "-c", code, "stages.train"]
        return int(subprocess.run(command, env=environment | more, capture_output=True, check=True).stdout)

    waiting = [sys.executable, "-c", "import time; time.sleep(60)"]
    before = threads()
    others = [subprocess.Popen([*waiting, word]) for word in ("stages.train", "queue-worker", "queue-worker")]
    try:
        assert threads() < before
        assert threads(OMP_NUM_THREADS="1") == 12
    finally:
        for other in others:
            other.kill()
            other.wait()
