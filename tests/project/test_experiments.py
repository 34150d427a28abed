"""Queues with DVC's own workers, and the way back from an experiment."""

from __future__ import annotations

import shlex
import subprocess
import time
from pathlib import Path

import pytest

from chargpt.model.file import read_model
from chargpt.project.params_file import load_params
from tests.conftest import Run, set_value, undo
from tests.docs.pages import blocks

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def environment(environment: dict[str, str]) -> dict[str, str]:
    """With as many threads as chargpt itself decides on."""
    return {k: v for k, v in environment.items() if k != "OMP_NUM_THREADS"}


def ran(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The stages that ran."""
    return [line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")]


def status(run: Run) -> dict[str, str]:
    """Name to state of the queue's tasks."""
    rows = [line.split() for line in run("dvc", "queue", "status").stdout.splitlines()[1:]]
    return {row[1]: row[-1] for row in rows if len(row) >= 4 and row[0] != "Worker"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_queue_of_four_on_two_workers(repo: Path, run: Run, environment: dict[str, str], tmp_path: Path) -> None:
    before = (repo / "artifacts/model.safetensors").read_bytes()
    run("dvc", "exp", "run", "--queue", "-S", "lr=0.001,0.003", "-S", "n_layer=2,4")
    with (tmp_path / "started").open("w") as file:  # the workers keep it open
        subprocess.run(["dvc", "queue", "start", "--jobs", "2"], cwd=repo, env=environment, stdout=file)
    deadline = time.monotonic() + 400  # DVC's workers now and then take a minute to begin
    while set(status(run).values()) != {"Success"}:
        assert time.monotonic() < deadline and "Failed" not in status(run).values(), status(run)
        time.sleep(1)
    names = list(status(run))
    assert len(names) == 4
    assert (repo / "artifacts/model.safetensors").read_bytes() == before  # the workspace is as it was
    assert run("git", "status", "--porcelain").stdout == ""
    seen = set()
    for name in names:
        run("dvc", "exp", "apply", name)
        about = read_model(repo / "artifacts/model.safetensors")
        assert about.params["lr"] == load_params(repo / "params.yaml").lr
        assert about.config.n_layer == about.params["n_layer"]
        seen.add((about.params["lr"], about.params["n_layer"]))
        undo(run)
    assert seen == {(0.001, 2), (0.001, 4), (0.003, 2), (0.003, 4)}
    (show,) = [block for block in blocks("docs/experiments.md") if block.startswith("dvc exp show --only-changed")]
    table = run(*shlex.split(show), "--no-pager").stdout
    assert max(map(len, table.splitlines())) <= 80
    for word in (*names, "val_loss", "n_layer", "lr"):
        assert word in table


@pytest.mark.slow
def test_going_back_to_old_parameters_trains_nothing(repo: Path, run: Run) -> None:
    params = repo / "params.yaml"
    text, model = params.read_text(), (repo / "artifacts/model.safetensors").read_bytes()
    set_value(params, lr=0.005)
    assert ran(run("dvc", "repro")) == ["train", "evaluate", "sample", "export"]
    params.write_text(text)
    assert ran(run("dvc", "repro")) == []
    assert (repo / "artifacts/model.safetensors").read_bytes() == model
    assert run("git", "status", "--porcelain").stdout == ""


def test_going_back_from_a_failed_experiment(repo: Path, run: Run) -> None:
    """With the documents' commands: the text's name is as long as the wrong one, which git alone does not notice."""
    (back,) = blocks("docs/experiments.md", "Return to the committed run")
    text, curve = (repo / "params.yaml").read_text(), (repo / "metrics/curves.tsv").read_bytes()
    done = run("dvc", "exp", "run", "-S", "corpus=data/nope.txt", check=False)
    assert done.returncode and "corpus is 'data/nope.txt', and there is no such file" in done.stderr
    assert (repo / "params.yaml").read_text() != text
    (repo / "metrics/curves.tsv").write_text("step\n")  # as an interrupted training leaves it
    run("bash", "-ec", back)
    assert (repo / "params.yaml").read_text() == text
    assert (repo / "metrics/curves.tsv").read_bytes() == curve
    assert run("git", "status", "--porcelain").stdout == ""
    assert ran(run("dvc", "repro")) == []
