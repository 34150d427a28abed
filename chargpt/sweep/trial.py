"""One trial: an ordinary DVC experiment in a clone of its own."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chargpt.errors import ChargptError, escape
from chargpt.paths import CURVE, METRICS
from chargpt.project.git import git, try_git
from chargpt.sweep.plan import overrides, tell
from chargpt.sweep.study import Sweep, free_slot, locked, next_trial

if TYPE_CHECKING:
    from optuna import Trial

LOOK_EVERY_S = 1.0  # at the curve, and whether to stop
PUSHES = 8  # attempts; git refuses a push while another one changes the same references
ORIGIN = "origin"  # the git remote
STATES = ".dvc/tmp/chargpt"  # saved states of trainings, in a clone
DATA_STAGE = "migrate"  # it and the stages before it depend on the data alone
ERROR = "error"  # attribute of a trial: why it failed


class Stopped(ChargptError):
    """The sweep was interrupted. The trial goes on when a process takes its clone again."""

    def __init__(self) -> None:
        super().__init__("stopped, because the sweep was; the same command continues")


class Failed(ChargptError):
    """The trial itself failed, as it would again."""


def run_trial(sweep: Sweep, since: float | None = None) -> str:
    """Run one trial, or go on with an interrupted one. Returns a line about it; empty if the budget is spent.

    since: a request to stop counts if it is younger, in seconds since 1970; by default, than this call.
    A trial that fails is recorded with the reason. After any other error, Stopped or an exception of a signal, the
    trial stays unfinished: it goes on when a process takes its clone again.
    """
    since = time.time() if since is None else since
    with free_slot(sweep) as (slot, lock):
        trial = next_trial(sweep, slot)
        if trial is None:
            return ""
        name = sweep.experiment(trial.number)
        log = sweep.folder / f"{name}.log"
        try:
            folder = _clone(sweep, slot, log)
            value = _experiment(sweep, trial, folder, log, lock, since)
            if value is not None:
                _push(name, folder, log)
                _intact(folder).touch()
        except Failed as error:
            return _failed(sweep, trial, name, error)
        if value is None:
            tell(sweep.study, trial, "PRUNED")
            return f"{name}: pruned"
        tell(sweep.study, trial, "COMPLETE", value)
    return f"{name}: {sweep.plan.objective} {value:.6f}"


def _failed(sweep: Sweep, trial: Trial, name: str, error: ChargptError) -> str:
    trial.set_user_attr(ERROR, str(error))
    tell(sweep.study, trial, "FAIL")
    return f"{name}: failed: {escape(str(error))}"


def _intact(folder: Path) -> Path:
    """The file that says of a clone that the last trial in it was completed: nothing was interrupted in a write."""
    return folder.with_suffix(".intact")


def _clone(sweep: Sweep, slot: int, log: Path) -> Path:
    """The clone of a slot at the baseline, its configuration that of the sweep.

    It is made anew if it may not be intact. Saved states of trainings are kept.
    """
    folder = sweep.folder / "slots" / str(slot)
    if not _intact(folder).exists():
        states, kept = folder / STATES, folder.with_suffix(".states")
        if states.exists() and not kept.exists():
            os.replace(states, kept)
        shutil.rmtree(folder, ignore_errors=True)
        _run(["git", "clone", "--quiet", sweep.git_url, str(folder)], sweep.folder, log)
        _run(["git", "checkout", "--quiet", "--detach", sweep.baseline], folder, log)
        _run([*DVC, "cache", "dir", "--local", str(sweep.cache)], folder, log)
        if kept.exists():
            states.parent.mkdir(exist_ok=True)
            os.replace(kept, states)
    _intact(folder).unlink(missing_ok=True)
    with locked(sweep.folder / "data.lock"):  # the first one prepares the data for all
        _run([*DVC, "repro", DATA_STAGE], folder, log)
    _run(["git", "reset", "--quiet", "--hard", sweep.baseline], folder, log)
    return folder


DVC = [sys.executable, "-m", "dvc"]


def _run(command: Sequence[str], folder: Path, log: Path) -> None:
    """Run a command; its output goes to the log. Raises ChargptError if it fails."""
    with log.open("ab") as output:
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        with _process(command, folder, output) as process:
            while process.poll() is None:
                time.sleep(0.05)
    if process.returncode:
        raise ChargptError(f"{_reason(log)}; look in {log}")


def _reason(log: Path) -> str:
    """The last error in a log, in one line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("$ ", "Having any troubles?"))]
    errors = [line for line in lines if line.lower().startswith(("error:", "fatal:"))]
    own = [line for line in errors if line.startswith("error: ")]  # what a stage said, before DVC says that it failed
    return (own or errors or lines or ["no output"])[-1]


@contextlib.contextmanager
def _process(command: Sequence[str], folder: Path, output: Any, *pass_on: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, which does not outlive this context: it gets SIGTERM, so that it saves.

    pass_on: descriptors that it gets.
    """
    process = subprocess.Popen(
        command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, process_group=0, pass_fds=pass_on
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to the group, and wait until no process of it is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        while True:
            process.poll()  # reaps it
            os.killpg(process.pid, 0)
            time.sleep(0.05)


def _experiment(sweep: Sweep, trial: Trial, folder: Path, log: Path, lock: int, since: float) -> float | None:
    """Run the experiment, and return the objective; None if it was pruned. Raises Failed if DVC ends with an error.

    lock: descriptor of the clone's lock. DVC holds it too, so that nobody takes the clone if only this process dies.
    """
    name = sweep.experiment(trial.number)
    changes = overrides(sweep.plan, trial.params)
    if not experiment_commit(name, folder):
        command = [*DVC, "exp", "run", "--name", name, *(word for change in changes for word in ("-S", change))]
        (folder / CURVE).unlink(missing_ok=True)  # of another trial
        with log.open("ab") as output, _process(command, folder, output, lock) as process:
            seen = 0
            while process.poll() is None:
                time.sleep(LOOK_EVERY_S)
                if sweep.stop.exists() and sweep.stop.stat().st_mtime >= since:
                    raise Stopped
                seen = _report(trial, folder / CURVE, seen)
                if trial.should_prune():
                    stop(process)
                    return None
        if process.returncode:
            raise Failed(f"{_reason(log)}; look in {log}")
    commit = experiment_commit(name, folder)
    try:
        metrics = json.loads(try_git("show", f"{commit}:{METRICS}", folder=folder) or "")
        return float(metrics[sweep.plan.objective])
    except (ValueError, KeyError, TypeError):
        raise Failed(f"{METRICS} has no number {sweep.plan.objective}; choose another objective") from None


def _push(name: str, folder: Path, log: Path) -> None:
    """Send an experiment to origin. Raises ChargptError if it does not arrive."""
    for attempt in range(PUSHES):
        try:
            _run([*DVC, "exp", "push", ORIGIN, name], folder, log)
            break
        except ChargptError:
            if attempt + 1 == PUSHES:
                raise
            time.sleep(random.uniform(0, 2**attempt / 2))
    # DVC is content if there is another experiment of this name
    there = git("ls-remote", ORIGIN, f"refs/exps/*/*/{name}", folder=folder)
    if experiment_commit(name, folder) not in there.split():
        raise ChargptError(f"{ORIGIN} has another experiment {name}; type: dvc exp remove --git-remote {ORIGIN} {name}")


def _report(trial: Trial, curve: Path, seen: int) -> int:
    """Tell Optuna the rows of the curve after the first `seen`; return the number of rows."""
    try:
        rows = list(csv.DictReader(curve.read_text(encoding="utf-8").splitlines(), delimiter="\t"))
    except OSError:
        return seen
    for row in rows[seen:]:
        trial.report(float(row["val_loss"]), int(row["step"]))
    return len(rows)


def experiment_commit(name: str, folder: str | Path) -> str:
    """The commit of an experiment in a clone, or an empty string."""
    return git("for-each-ref", "--format=%(objectname)", f"refs/exps/*/*/{name}", folder=folder).strip()
