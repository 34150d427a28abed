"""`chargpt mlflow`: copy the experiments that DVC keeps into an MLflow store, afterwards. Training never sees it."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from chargpt.errors import ChargptError
from chargpt.paths import CURVE
from chargpt.project.outputs import require_clone
from chargpt.runtime.exits import one_line

REVISION = "dvc.revision"  # the tag that says which commit a run shows
AT_ONCE = 100  # MLflow's limit for parameters in one call


def mirror(uri: str | None, name: str | None) -> tuple[int, int]:
    """Write every commit and experiment that has metrics into a store, unless it is there already.

    uri: of the store; None takes $MLFLOW_TRACKING_URI. name: of MLflow's experiment; None takes the project's folder.
    Returns the number of new runs, and of those that were there. Raises ChargptError if mlflow is not installed, no
    store is named, it cannot be written, or DVC cannot list its experiments.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # of 7, which take minutes
    try:
        from mlflow import MlflowClient
    except ImportError:
        raise ChargptError("mlflow is not installed; type: pip install -c constraints.txt -e '.[mlflow]'") from None
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise ChargptError("no MLflow store is named; pass --tracking-uri, or set MLFLOW_TRACKING_URI")
    require_clone()
    found = list(revisions())
    new = old = 0
    broken: list[str] = []
    try:
        client = MlflowClient(tracking_uri=uri)
        name = name or Path.cwd().name
        known = client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else client.create_experiment(name)
        for revision in found:
            if client.search_runs([experiment], f"tags.`{REVISION}` = '{revision['rev']}'", max_results=1):
                old += 1
            elif unreadable := _unreadable(revision):
                broken.append(unreadable)
            else:
                _write(client, experiment, revision)
                new += 1
    except Exception as error:  # MLflow, and the libraries that it reaches a store with, raise errors of many types
        raise ChargptError(
            f"{uri}: {one_line(error)}; check the address, --name, and whether you may write there"
        ) from None
    if broken:
        raise ChargptError(*broken)
    return new, old


def _unreadable(revision: Mapping[str, Any]) -> str:
    """Why DVC cannot read the parameters or metrics of a revision; empty if it can."""
    files = [*revision["data"]["params"].values(), *revision["data"]["metrics"].values()]
    if errors := [file["error"] for file in files if "error" in file]:
        return f"{revision['rev'][:7]} is left out: {errors[0]['msg']}; correct the file in a new commit"
    return ""


def revisions() -> Iterator[dict[str, Any]]:
    """Every commit and finished experiment that has metrics, as `dvc exp show --json` tells of it.

    `parent` is added: the commit that an experiment started from, empty for a commit.
    """
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json", "--all-commits"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ChargptError(
            f"DVC cannot list its experiments: {done.stderr.strip().splitlines()[-1]}; type: chargpt check"
        )
    for commit in json.loads(done.stdout):
        experiments = [revision for experiment in commit["experiments"] or [] for revision in experiment["revs"][:1]]
        for revision, parent in [(commit, ""), *((experiment, commit["rev"]) for experiment in experiments)]:
            if revision["rev"] != "workspace" and (revision["data"] or {}).get("metrics"):
                yield revision | {"parent": parent}


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings, their keys joined by dots."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _write(client: Any, experiment: str, revision: Mapping[str, Any]) -> None:
    from mlflow.entities import Metric, Param

    data, rev = revision["data"], revision["rev"]
    when = int(datetime.fromisoformat(data["timestamp"]).timestamp() * 1000)
    params = [pair for file in data["params"].values() for pair in flat(file["data"])]
    metrics = [pair for file in data["metrics"].values() for pair in flat(file["data"])]
    entries = [Metric(key, float(value), when, 0) for key, value in metrics if isinstance(value, int | float)]
    entries += [Metric(f"curve.{key}", value, when, step) for step, row in _curve(rev) for key, value in row.items()]
    tags = {"dvc.parent": revision["parent"]}
    run = client.create_run(experiment, when, tags, run_name=revision["name"] or rev[:7]).info.run_id
    try:
        for first in range(0, len(entries), AT_ONCE):
            client.log_batch(run, metrics=entries[first : first + AT_ONCE])
        for first in range(0, len(params), AT_ONCE):
            client.log_batch(run, params=[Param(key, str(value)) for key, value in params[first : first + AT_ONCE]])
        client.set_terminated(run, end_time=when)
        client.set_tag(run, REVISION, rev)  # last: it says that the run is complete
    except BaseException:
        client.delete_run(run)
        raise


def _curve(rev: str) -> Iterator[tuple[int, dict[str, float]]]:
    """Step and losses of each row of the training curve; nothing if its file is neither in the cache nor the remote."""
    import dvc.api
    from dvc.exceptions import DvcException

    try:
        text = dvc.api.read(CURVE, rev=rev)
    except (DvcException, OSError):
        return
    for row in csv.DictReader(io.StringIO(text), delimiter="\t"):
        step = int(row.pop("step"))
        yield step, {key: float(value) for key, value in row.items()}
