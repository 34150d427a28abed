"""`chargpt mlflow`, with a real store in a directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import SIGNED, Run, chargpt

pytestmark = pytest.mark.system


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # of SQLAlchemy about MLflow
def test_every_experiment_once(repo: Path, run: Run, tmp_path: Path) -> None:
    """With parameters, metrics and curve; a second call adds only what is new."""
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install -e .[mlflow]")
    store = f"sqlite:///{tmp_path}/mlflow.db"
    run("dvc", "exp", "run", "-n", "slow", "-S", "lr=0.001", **SIGNED)
    command = ("chargpt", "mlflow", "--tracking-uri", store, "--name", "toy")
    assert run(*command).stdout == "new runs: 3; already there: 0\n"
    run("dvc", "exp", "run", "-n", "fast", "-S", "lr=0.01", **SIGNED)
    assert run(*command).stdout == "new runs: 1; already there: 3\n"
    assert run(*command, MLFLOW_TRACKING_URI="").stdout == "new runs: 0; already there: 4\n"
    client = mlflow.MlflowClient(store)
    runs = {r.info.run_name: r for r in client.search_runs([client.get_experiment_by_name("toy").experiment_id])}
    first, branch = (
        run("git", *command.split()).stdout.strip()
        for command in ("rev-list --max-parents=0 HEAD", "branch --show-current")
    )
    assert set(runs) == {first[:7], branch, "slow", "fast"}
    assert (runs["slow"].data.params["lr"], runs["fast"].data.params["lr"]) == ("0.001", "0.01")
    head = run("git", "rev-parse", "HEAD").stdout.strip()
    assert runs["slow"].data.tags["dvc.parent"] == head
    for name in ("slow", "fast"):
        figures = runs[name].data.metrics
        expected = json.loads(
            run("git", "show", f"{runs[name].data.tags['dvc.revision']}:metrics/evaluate.json").stdout
        )
        assert figures["val_loss"] == expected["val_loss"]
        assert figures["copied.longest"] == expected["copied"]["longest"]
        assert {"perplexity", "curve.lr", "curve.train_loss"} <= set(figures)
        assert [point.step for point in client.get_metric_history(runs[name].info.run_id, "curve.val_loss")] == [
            0,
            5,
            10,
        ]
    done = run("chargpt", "mlflow", "--tracking-uri", "nowhere://x", check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: nowhere://x: "), done.stderr
    assert (
        done.stderr.endswith("; check the address, --name, and whether you may write there\n")
        and done.stderr.count("\n") == 1
    )
    run("git", "checkout", "-q", "--", ".")
    run("dvc", "checkout", "--force")


def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install -e .[mlflow]")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    done = chargpt("mlflow", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        "error: no MLflow store is named; pass --tracking-uri, or set MLFLOW_TRACKING_URI\n",
    )
    done = chargpt("mlflow", "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        "error: dvc.yaml: no such file; run from the root of a clone of chargpt\n",
    )
