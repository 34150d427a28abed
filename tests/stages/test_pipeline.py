"""dvc.yaml against what the stages really do, and the whole pipeline at toy size in a clone of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import stages.__main__ as runner
from chargpt.model.file import load_model, read_model
from chargpt.project.params_file import load_params
from tests.conftest import TEXT, Run, set_value, undo, write_params
from tests.pipeline import ROOT

OUTPUTS = ["artifacts/model.safetensors", "metrics/curves.tsv", "dvc.lock"]


@pytest.fixture(scope="module")
def said(template: Path) -> str:
    """What `dvc repro` printed when it ran everything."""
    return (template.parent / "said.txt").read_text()


def test_repro_twice_gives_the_same_bytes(repo: Path, run: Run) -> None:
    """Here of the training; tests/docs/test_commands.py repeats all stages."""
    before = {name: (repo / name).read_bytes() for name in OUTPUTS}
    (repo / "data/mine.txt").touch()  # the content counts, not the time
    assert "Data and pipelines are up to date" in run("dvc", "repro").stdout
    run("dvc", "repro", "-f", "--single-item", "train")
    assert {name: (repo / name).read_bytes() for name in OUTPUTS} == before
    assert run("git", "status", "--porcelain").stdout == ""


def test_own_text_needs_no_download(repo: Path, said: str) -> None:
    assert (repo / "data/tinyshakespeare.txt").read_bytes() == b""
    assert "the corpus is data/mine.txt; nothing to download" in said
    assert "migrate: skipped; init is scratch" in said
    lock = YAML(typ="safe").load((repo / "dvc.lock").read_text())
    assert "data/mine.txt" in {dep["path"] for dep in lock["stages"]["prepare"]["deps"]}


def test_outputs_fit_together(repo: Path) -> None:
    model, vocab = load_model(repo / "artifacts/model.safetensors")
    assert set(vocab.itos) == set(TEXT)
    params = load_params(repo / "params.yaml")
    assert read_model(repo / "artifacts/model.safetensors").params["lr"] == params.lr
    rows = [line.split("\t") for line in (repo / "metrics/curves.tsv").read_text().splitlines()]
    assert rows[0] == ["step", "train_loss", "val_loss", "lr"]
    assert [row[0] for row in rows[1:]] == ["0", "5", "10"]
    metrics = json.loads((repo / "metrics/evaluate.json").read_text())
    assert metrics["val_loss"] == pytest.approx(min(float(row[2]) for row in rows[1:]), abs=1e-6)
    sample = (repo / "artifacts/sample.txt").read_text()
    assert sample.count("=== sample") == params.num_samples
    assert sample.startswith("=== sample 1 ===\n9")
    assert model.config.n_embd == params.n_embd


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["-S", "+batchsize=3", "-S", "lr=0.1"], "error: params.yaml: unknown key batchsize: did you mean batch_size?"),
        (["-S", "init=migrated"], "error: data/legacy/weights: the weights know 65 characters, the text has "),
    ],
)
def test_bad_params_stop_the_first_stage(repo: Path, run: Run, change: list[str], message: str) -> None:
    done = run("dvc", "exp", "run", *change, check=False)
    undo(run)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.system
def test_plots(repo: Path, run: Run) -> None:
    run("dvc", "plots", "show", "-o", "plots")
    page = (repo / "plots/index.html").read_text()
    assert "train_loss" in page and "learning rate" in page
    shutil.rmtree(repo / "plots")


def test_sampling_params_do_not_retrain(repo: Path, run: Run) -> None:
    params = repo / "params.yaml"
    set_value(params, temperature=0.5)
    done = run("dvc", "repro")
    assert [line for line in done.stdout.splitlines() if line.startswith("Running")] == ["Running stage 'sample':"]
    undo(run)


def test_a_key_that_no_stage_reads_is_noticed(repo: Path, run: Run) -> None:
    with (repo / "params.yaml").open("a") as file:
        file.write("learning_rate: 0.1\n")
    done = run("dvc", "repro", check=False)
    assert done.returncode != 0
    assert "error: params.yaml: unknown key learning_rate: " in done.stderr
    undo(run)


def test_params_are_refused_before_torch_loads(tmp_path: Path) -> None:
    """Through the runner, whichever stage."""
    write_params(tmp_path / "params.yaml", lr="abc")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import chargpt.runtime.environment, chargpt.runtime.progress, chargpt.runtime.torchrun\n"
        "import stages.__main__ as runner\n"
        "for stage in ('download', 'prepare', 'migrate', 'train', 'evaluate', 'sample', 'export'):\n"
        "    sys.argv[1:] = [stage]\n"
        "    try: runner.main()\n"
        "    except SystemExit as error: assert 'lr is' in str(error), error\n"
        "    else: sys.exit(9)\n"
        "assert not {'torch', 'numpy', 'stages.train'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [[], ["nope"], ["train", "sample"], ["__main__"]])
def test_the_runner_says_how_it_is_called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["stages", *arguments])
    with pytest.raises(SystemExit) as ended:
        runner.main()
    assert ended.value.code == (
        "error: run: python -m stages NAME, with one of download, evaluate, export, migrate, prepare, sample, train"
    )
