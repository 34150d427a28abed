"""Queues, copies and clones: what a team does with experiments, on a fresh clone, with DVC's own workers."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chargpt.model.file import read_model
from chargpt.project.params_file import load_params
from tests.conftest import SIGNED, Run, set_value, undo
from tests.documents import blocks
from tests.project import exp_ref

pytestmark = pytest.mark.system

In = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def environment(environment: dict[str, str]) -> dict[str, str]:
    """With a name, and with as many threads as chargpt itself decides on."""
    return {k: v for k, v in environment.items() if k != "OMP_NUM_THREADS"} | SIGNED


@pytest.fixture(scope="module")
def inside(environment: dict[str, str]) -> In:
    """Runs a command in any folder."""

    def run(folder: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    return run


def ran(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The stages that ran."""
    return [line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")]


def status(run: Run) -> dict[str, str]:
    """Name to state of the queue's tasks."""
    rows = [line.split() for line in run("dvc", "queue", "status").stdout.splitlines()[1:]]
    return {row[1]: row[-1] for row in rows if len(row) >= 4 and row[0] != "Worker"}


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


def test_between_clones(repo: Path, run: Run, inside: In, tmp_path: Path) -> None:
    """A bare repository in the middle, a directory as remote: branch, push, pull, apply, and nothing trained twice."""
    bare, other, store = tmp_path / "bare.git", tmp_path / "other", tmp_path / "store"
    run("git", "clone", "-q", "--bare", str(repo), str(bare))
    run("git", "remote", "add", "origin", str(bare))
    run("dvc", "remote", "add", "-f", "--local", "-d", "team", str(store))
    # an experiment in a copy, brought here, made a branch, sent off
    run("dvc", "exp", "run", "--temp", "-n", "hot", "-S", "lr=0.004")
    hot = run("git", "show", "refs/exps/" + exp_ref(run, "hot") + ":params.yaml").stdout
    assert "lr: 0.004" in hot
    run("dvc", "exp", "branch", "hot", "hot-branch")
    run("dvc", "exp", "push", "--run-cache", "origin", "hot")
    run("dvc", "push", "--run-cache")
    # a colleague takes it
    inside(tmp_path, "git", "clone", "-q", str(bare), str(other))
    inside(other, "dvc", "remote", "add", "--local", "-d", "team", str(store))
    assert ran(inside(other, "dvc", "repro", "--pull")) == []
    inside(other, "dvc", "exp", "pull", "origin", "hot")
    inside(other, "dvc", "exp", "apply", "hot")
    assert load_params(other / "params.yaml").lr == 0.004
    assert read_model(other / "artifacts/model.safetensors").params["lr"] == 0.004
    inside(other, "git", "reset", "-q", "--hard")
    # the colleague types the same value: the remote's run cache has the result
    shutil.rmtree(other / ".dvc/cache")
    text = (other / "params.yaml").read_text()
    set_value(other / "params.yaml", lr=0.004)
    assert "train" not in ran(inside(other, "dvc", "repro", "--pull"))
    assert read_model(other / "artifacts/model.safetensors").params["lr"] == 0.004
    # and going back costs nothing either
    (other / "params.yaml").write_text(text)
    assert "train" not in ran(inside(other, "dvc", "repro", "--pull"))
    inside(other, "dvc", "checkout", "--force")
    run("git", "branch", "-D", "hot-branch")


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
