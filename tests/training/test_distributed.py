"""Two processes on the CPU (gloo), which the train stage starts by becoming torchrun."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import astuple
from pathlib import Path

import psutil
import pytest

from chargpt.evaluation.curve import read_curve
from chargpt.model.file import load_model
from tests.conftest import TEXT, free_ports, hear_hangups, set_value, until, write_params
from tests.pipeline import ROOT

pytestmark = pytest.mark.system

TWO, ONE = "torchrun --standalone --nproc-per-node 2", "python"


@pytest.fixture(scope="module", params=["whole", pytest.param("lines", marks=pytest.mark.slow)])
def prepared(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A directory with the code and a prepared text, and no DVC."""
    folder = tmp_path_factory.mktemp("prepared")
    for name in ("chargpt", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", folder)
    (folder / "mine.txt").write_text(TEXT)
    write_params(folder / "params.yaml", corpus="mine.txt", documents=request.param)
    set_value(folder / "params.yaml", max_iters=60, eval_interval=20, dtype="float32")
    subprocess.run([sys.executable, "-m", "stages", "prepare"], cwd=folder, check=True, capture_output=True)
    return folder


def start(folder: Path, launch: str, *wrapper: str, **variables: str) -> subprocess.Popen[str]:
    path = folder / "params.yaml"
    path.write_text(re.sub("^launch: .*", f"launch: {launch}", path.read_text(), flags=re.MULTILINE))
    command = [*wrapper, sys.executable, "-m", "stages", "train"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CHARGPT_SAVE_EVERY_S": "0.05"} | variables
    return subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=hear_hangups
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def wait_for_saves(folder: Path) -> None:
    """Until the run that was started last has saved its state."""
    since = time.time()
    checkpoints = (folder / ".dvc/tmp/chargpt").glob
    until(lambda: any(p.stat().st_mtime > since for p in checkpoints("*/checkpoint.safetensors")))


def curve(folder: Path) -> list[tuple[float, ...]]:
    return [astuple(row) for row in read_curve(folder / "metrics/curves.tsv")]


@pytest.fixture(scope="module")
def single(prepared: Path) -> list[tuple[float, ...]]:
    status, errors = finish(start(prepared, ONE))
    assert status == 0, errors
    return curve(prepared)


@pytest.mark.slow
def test_same_curve_as_one_process(prepared: Path, single: list[tuple[float, ...]]) -> None:
    status, errors = finish(start(prepared, TWO))
    assert status == 0, errors
    assert errors.count("step 60/60") == 1, "one process speaks"
    for ours, theirs in zip(curve(prepared), single, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)
    load_model(prepared / "artifacts/model.safetensors")
    assert not list((prepared / ".dvc/tmp/chargpt").iterdir())


def test_two_machines(prepared: Path, single: list[tuple[float, ...]], tmp_path: Path) -> None:
    """As the two commands in docs/scaling.md start them, each in a copy of its own; interrupted, and started again.

    Only the first machine has the checkpoint.
    """
    shutil.copytree(prepared, tmp_path / "second", ignore=shutil.ignore_patterns("metrics", ".dvc"))

    def both() -> list[subprocess.Popen[str]]:
        port = str(free_ports(1)[0])
        meet = {"PET_NNODES": "2", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port}
        launch = "torchrun --nproc-per-node 1"
        folders = ((prepared, "0"), (tmp_path / "second", "1"))
        return [start(folder, launch, PET_NODE_RANK=rank, **meet) for folder, rank in folders]

    processes = both()
    wait_for_saves(prepared)
    processes[0].send_signal(signal.SIGTERM)
    assert all(finish(process)[0] != 0 for process in processes)
    (first, errors), (second, others) = map(finish, both())
    assert (first, second) == (0, 0), errors + others
    assert "continuing at step" in errors and "train: " not in others
    for ours, theirs in zip(curve(prepared), single, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)
    assert not (tmp_path / "second/metrics").exists(), "the first machine writes"


@pytest.mark.slow
def test_a_host_without_an_address(prepared: Path) -> None:
    """On one machine, the name of the host does not matter. Of several, an unknown first one is refused at once."""
    two = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "first.invalid"}
    status, said = finish(start(prepared, "torchrun --nproc-per-node 1", **two))
    assert status == 1 and said.startswith("error: PET_MASTER_ADDR is 'first.invalid': ") and said.count("\n") == 1
    renamed = ["unshare", *("--user", "--map-root-user", "--uts"), "sh", "-c", 'hostname x.invalid && exec "$@"', "sh"]
    if subprocess.run([*renamed, "true"], capture_output=True).returncode:
        pytest.skip("no privilege to rename the host")
    for launch in ("torchrun --nproc-per-node 1", TWO):
        status, said = finish(start(prepared, launch, *renamed))
        assert status == 0, said


def test_an_uneven_batch_is_refused(prepared: Path) -> None:
    text = (prepared / "params.yaml").read_text()
    set_value(prepared / "params.yaml", batch_size=5)
    status, errors = finish(start(prepared, TWO))
    (prepared / "params.yaml").write_text(text)
    assert status != 0
    assert errors.count("error: batch_size=5 cannot be shared evenly by 2 processes; try -S batch_size=6") == 1
    assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_killed_rank_ends_the_run_which_then_continues(prepared: Path, single: list[tuple[float, ...]]) -> None:
    text = (prepared / "params.yaml").read_text()
    set_value(prepared / "params.yaml", max_iters=500)
    status, errors = finish(start(prepared, TWO))
    assert status == 0, errors
    outputs = ("artifacts/model.safetensors", "metrics/curves.tsv")
    expected = {name: (prepared / name).read_bytes() for name in outputs}
    process = start(prepared, TWO)
    wait_for_saves(prepared)
    workers = [p for p in psutil.Process(process.pid).children() if p.cmdline()[-2:] == ["stages", "train"]]
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    status, errors = finish(process)
    assert status != 0
    assert errors.endswith(
        "error: rank 1 was ended by SIGKILL; run the same command to continue from the last checkpoint\n"
    ), errors
    assert "Traceback" not in errors
    for number in (signal.SIGINT, signal.SIGHUP):
        process = start(prepared, TWO)
        wait_for_saves(prepared)
        process.send_signal(number)
        status, errors = finish(process)
        assert (status, "Traceback" in errors) == (128 + number, False), errors
        assert errors.count("saved at step") == 1
    status, errors = finish(start(prepared, TWO))
    assert (status, "continuing at step" in errors) == (0, True), errors
    assert {name: (prepared / name).read_bytes() for name in outputs} == expected
    (prepared / "params.yaml").write_text(text)
