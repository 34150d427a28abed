"""dvc.yaml against what the stages really do, and the whole pipeline at toy size in a clone of its own."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from chargpt.checkpoint import load_model, read_metadata
from chargpt.params import load_params
from tests.conftest import IDENTITY, TEXT, Run, undo, write_params
from tests.pipeline import ROOT, Recorder, imported_files

STAGES: dict[str, Any] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


@pytest.mark.parametrize("stage", STAGES)
def test_code_deps_are_the_real_imports(stage: str) -> None:
    declared = {dep for dep in STAGES[stage]["deps"] if dep.endswith(".py")}
    assert declared == imported_files(ROOT / f"stages/{stage}.py")
    assert STAGES[stage]["cmd"] == f"python -m stages.{stage}"


OUTPUTS = [
    "artifacts/vocab.json",
    "data/tokens.safetensors",
    "artifacts/model.safetensors",
    "metrics/curves.tsv",
    "metrics/evaluate.json",
    "metrics/migrate.json",
    "artifacts/sample.txt",
    "artifacts/hf/model.safetensors",
    "artifacts/hf/tokenizer.json",
    "dvc.lock",
]


@pytest.fixture(scope="module")
def reproduced(repo: Path, run: Run) -> str:
    done = run("dvc", "repro")
    run("git", "add", "--all")
    run("git", *IDENTITY, "commit", "-q", "-m", "repro")
    return done.stdout + done.stderr


def test_repro_twice_gives_the_same_bytes(repo: Path, run: Run, reproduced: str) -> None:
    before = {name: (repo / name).read_bytes() for name in OUTPUTS}
    assert "Data and pipelines are up to date" in run("dvc", "repro").stdout
    run("dvc", "repro", "-f")
    assert {name: (repo / name).read_bytes() for name in OUTPUTS} == before
    assert run("git", "status", "--porcelain").stdout == ""


def test_own_text_needs_no_download(repo: Path, reproduced: str) -> None:
    assert (repo / "data/input.txt").read_bytes() == b""
    assert "the corpus is data/mine.txt; nothing to fetch" in reproduced
    assert "migrate: skipped; init is scratch" in reproduced
    lock = YAML(typ="safe").load((repo / "dvc.lock").read_text())
    assert "data/mine.txt" in {dep["path"] for dep in lock["stages"]["prepare"]["deps"]}


def test_outputs_fit_together(repo: Path, reproduced: str) -> None:
    model, vocab = load_model(repo / "artifacts/model.safetensors")
    assert set(vocab.itos) == set(TEXT)
    params = load_params(repo / "params.yaml")
    assert read_metadata(repo / "artifacts/model.safetensors")["params"]["lr"] == params.lr
    rows = [line.split("\t") for line in (repo / "metrics/curves.tsv").read_text().splitlines()]
    assert rows[0] == ["step", "train_loss", "val_loss", "lr"]
    assert [row[0] for row in rows[1:]] == ["0", "5", "10"]
    metrics = json.loads((repo / "metrics/evaluate.json").read_text())
    assert metrics["val_loss"] == pytest.approx(min(float(row[2]) for row in rows[1:]), abs=1e-6)
    sample = (repo / "artifacts/sample.txt").read_text()
    assert sample.count("=== sample") == params.num_samples
    assert sample.startswith("=== sample 1 ===\n9")
    assert model.config.n_embd == params.n_embd


def test_stages_read_the_params_they_declare(
    repo: Path, run: Run, reproduced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repo)
    for name, stage in STAGES.items():
        module = importlib.import_module(f"stages.{name}")
        recorder = Recorder(load_params())
        module.main(recorder)
        templated = {dep[2:-1] for dep in stage["deps"] if dep.startswith("${")}
        assert recorder.read | templated == set(stage.get("params", [])), name
    undo(run)  # this process has another number of threads, which may show in a last digit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["-S", "n_head=3"], "error: params.yaml: n_embd=8 is not a multiple of n_head=3"),
        (["-S", "dropout=2"], "error: params.yaml: dropout is 2; it must be a number, >= 0, < 1"),
        (["-S", "lr=abc"], "error: params.yaml: lr is 'abc' (text); it must be a number, > 0, <= 10"),
        (["-S", "lr=true"], "error: params.yaml: lr is True (a boolean)"),
        (["-S", "+batchsize=3", "-S", "lr=0.1"], "error: params.yaml: unknown key batchsize: did you mean batch_size?"),
        (["-S", "init=migrated"], "error: data/legacy/weights: the weights know 65 characters, the text has "),
    ],
)
def test_bad_params_stop_the_first_stage(
    repo: Path, run: Run, reproduced: str, change: list[str], message: str
) -> None:
    done = run("dvc", "exp", "run", *change, check=False)
    undo(run)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_params_are_refused_before_torch_loads(tmp_path: Path) -> None:
    write_params(tmp_path / "params.yaml", lr="abc")
    code = (
        "import sys; sys.path.insert(0, {root!r})\n"
        "import stages, stages.{stage} as stage\n"
        "try: stages.run(stage.main)\n"
        "except SystemExit as error: sys.exit(3 + ('torch' in sys.modules) if 'lr is' in str(error) else 9)\n"
    )
    for stage in STAGES:
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code.format(root=str(ROOT), stage=stage)], cwd=tmp_path)
        assert done.returncode == 3, stage
        assert time.perf_counter() - started < 5  # a second on an idle machine


def test_experiments_metrics_and_plots(repo: Path, run: Run, reproduced: str) -> None:
    """From a clean tree and without a git identity, as on a fresh clone."""
    run("dvc", "exp", "run", "-n", "hotter", "-S", "lr=1e-05")
    assert load_params(repo / "params.yaml").lr == 1e-5
    assert "lr: 1e-05" in (repo / "params.yaml").read_text()
    assert "hotter" in run("dvc", "exp", "show", "--md", "--only-changed").stdout
    assert "val_loss" in run("dvc", "metrics", "diff", "HEAD").stdout
    run("dvc", "plots", "show", "-o", "plots")
    page = (repo / "plots/index.html").read_text()
    assert "train_loss" in page and "learning rate" in page
    shutil.rmtree(repo / "plots")
    undo(run)
    done = run("dvc", "repro")
    assert "Running stage" not in done.stdout, done.stdout


def test_sampling_params_do_not_retrain(repo: Path, run: Run, reproduced: str) -> None:
    params = repo / "params.yaml"
    text = params.read_text()
    params.write_text(text.replace("temperature: 0.8", "temperature: 0.5"))
    done = run("dvc", "repro")
    assert [line for line in done.stdout.splitlines() if line.startswith("Running")] == ["Running stage 'sample':"]
    undo(run)


def test_push_and_pull(repo: Path, run: Run, reproduced: str) -> None:
    before = (repo / "artifacts/model.safetensors").read_bytes()
    run("dvc", "push")
    shutil.rmtree(repo / ".dvc/cache")
    shutil.rmtree(repo / "artifacts")
    run("dvc", "pull")
    assert (repo / "artifacts/model.safetensors").read_bytes() == before
