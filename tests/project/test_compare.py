"""`chargpt gate`, and the versions that `chargpt report` compares with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Run, undo
from tests.project import error

pytestmark = pytest.mark.system


@pytest.fixture
def metrics(repo: Path, run: Run) -> Iterator[Path]:
    yield repo / "metrics/evaluate.json"
    undo(run)


@pytest.mark.slow
def test_gate_compares_with_another_revision(run: Run, metrics: Path) -> None:
    figures = json.loads(metrics.read_text())
    assert "worse" in error(run("chargpt", "gate", check=False))  # nothing changed since HEAD: the commit before it
    assert run("chargpt", "gate", "--against", "HEAD").stdout.count("+0.000000") == 3
    metrics.write_text(json.dumps(figures | {"val_loss": figures["val_loss"] * 1.009}))
    assert "val_loss       HEAD " in run("chargpt", "gate").stdout
    said = error(run("chargpt", "gate", "--max-regression", "0.008", check=False)).splitlines()[-1]
    assert said == (
        "error: worse than at HEAD by more than 0.80%: val_loss;"
        " keep the old model, or allow more with --max-regression"
    )
    metrics.write_text(json.dumps(figures | {"val_loss": figures["val_loss"] * 0.9}))
    run("chargpt", "gate", "--max-regression", "0")
    metrics.write_text(json.dumps(figures).replace(str(figures["val_loss"]), "NaN"))
    assert "val_loss" in error(run("chargpt", "gate", check=False))
    metrics.write_text(json.dumps({"val_loss": 1.0}))
    assert "bits_per_char, perplexity missing" in error(run("chargpt", "gate", check=False))
    assert "unknown Git revision 'nope'" in error(run("chargpt", "gate", "--against", "nope", check=False))
    for revision in ("HEAD:metrics", "\udcff", "x" * 10_000, "HEAD^{tree}", "-1", "@{99}"):
        assert len(error(run("chargpt", "gate", "--against", revision, check=False)).splitlines()) == 1
    metrics.write_text(json.dumps(figures | {"\x1b[31m\ud800": 1.0}))
    run("git", "commit", "-q", "-a", "-m", "odd")
    assert r"\x1b[31m\ud800" in run("chargpt", "gate", "--against", "HEAD").stdout
    for odd in ("7", '"x"', "{", "[" * 5000, '{"val_loss": 1' + "0" * 400 + "}"):
        metrics.write_text(odd)
        run("git", "commit", "-q", "-a", "-m", "odd")
        metrics.write_text(json.dumps(figures))
        assert len(error(run("chargpt", "gate", "--against", "HEAD", check=False)).splitlines()) == 1
    run("git", "reset", "-q", "--hard", "HEAD~6")
    metrics.write_text(json.dumps(figures | {"val_loss": 10**400}))
    assert "val_loss missing" in error(run("chargpt", "gate", check=False))
    metrics.unlink()
    assert "no metrics; run: dvc repro" in error(run("chargpt", "gate", check=False))


@pytest.mark.slow
def test_gate_against_an_experiment(run: Run, metrics: Path) -> None:
    run("dvc", "exp", "run", "--temp", "-n", "slow", "-S", "lr=1e-06")
    assert "val_loss       slow " in run("chargpt", "gate", "--against", "slow").stdout
