"""One trial: an ordinary DVC experiment in a clone of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
from optuna.trial import TrialState

from chargpt.errors import ChargptError
from chargpt.evaluation.curve import read_curve
from chargpt.files import finite_numbers, parse_json
from chargpt.paths import CURVE, METRICS
from chargpt.project.git import git, reason, try_git, without_credentials
from chargpt.project.overrides import override
from chargpt.project.release import dvc
from chargpt.sweep.plan import record
from chargpt.sweep.study import STOP, Sweep, locked, next_trial

POLL_S = 1.0  # seconds between looks at the curve and for a request to stop
PAUSES = (1, 4, 16)  # seconds between attempts to push, because a network may fail for a moment
ORIGIN = "origin"  # the git remote
CHECKPOINTS = ".checkpoints"  # suffix of the directory beside a clone that keeps them
LOCAL = ".dvc/config.local"
ERROR = "error"  # attribute of a trial: why it failed
DVC = [sys.executable, "-P", "-m", "dvc"]


class Stopped(ChargptError):
    """The sweep was interrupted. The trial continues when a process takes it again."""


class Failed(ChargptError):
    """The trial itself failed, as it would again."""


def run_trial(sweep: Sweep) -> str:
    """Run one trial, or continue an interrupted one. Returns a line about it; empty if the budget is spent.

    A trial that fails is recorded with the reason. After any other error, Stopped or an exception of a signal, the
    trial stays unfinished: it continues when a process takes it again.
    """
    with next_trial(sweep) as taken:
        if taken is None:
            return ""
        trial, lock = taken
        name, folder = sweep.experiment(trial.number), sweep.clone(trial.number)
        log = sweep.folder / f"{name}.log"
        state, value, outcome = TrialState.PRUNED, None, "pruned"
        try:
            # if there is an experiment, only its push was interrupted
            if experiment_commit(sweep, name, folder / ".git") or _experiment(sweep, trial, folder, log, lock):
                value = _objective(sweep, name, folder)
                _push(sweep, name, folder, log)
                state, outcome = TrialState.COMPLETE, f"{sweep.plan.objective} {value:.6f}"
        except Failed as error:
            trial.set_user_attr(ERROR, str(error))
            state, outcome = TrialState.FAIL, f"failed: {error}"
        record(sweep.study, trial, state, value)
        for left in (folder, folder.with_suffix(CHECKPOINTS)):
            shutil.rmtree(left, ignore_errors=True)
    return f"{name}: {outcome}"


def _clone(sweep: Sweep, folder: Path, log: Path) -> None:
    """Make the clone anew, at the baseline, because any file of it may be half-written. Checkpoints are kept."""
    checkpoints = folder.with_suffix(CHECKPOINTS)
    checkpoints.mkdir(exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    _run(["git", "clone", "--quiet", str(sweep.home), str(folder)], sweep.folder, log)
    _run(["git", "checkout", "--quiet", "--detach", sweep.baseline], folder, log)
    if (settings := sweep.home / LOCAL).is_file():  # remotes and keys of this user
        shutil.copy(settings, folder / LOCAL)
    _run([*DVC, "cache", "dir", "--local", dvc("cache", "dir", folder=sweep.home).strip()], folder, log)
    if kept := git("ls-files", "-z", "*.dvc", folder=folder).split("\0")[:-1]:  # by `dvc add`, as a large text
        _run([*DVC, "checkout", "--allow-missing", *kept], folder, log)
    (folder / ".dvc/tmp").mkdir(exist_ok=True)
    (folder / ".dvc/tmp/chargpt").symlink_to(checkpoints)


def origin(home: Path) -> str:
    """The URL of the git remote to which trials push. It may hold a token, so it is neither printed nor stored."""
    url = git("remote", "get-url", ORIGIN, folder=home).strip()
    return str(home / url) if (home / url).exists() else url


def _run(command: list[str], folder: Path, log: Path) -> None:
    """Run a command; its output goes to the log, without passwords in URLs. Raises ChargptError if it fails."""
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = done.stdout.decode("utf-8", "replace")
    with log.open("a", encoding="utf-8") as file:
        file.write(without_credentials(f"$ {' '.join(command)}\n{output}"))
    if done.returncode:
        raise ChargptError(f"{reason(output, done.returncode)}; see {log}")


def _experiment(sweep: Sweep, trial: optuna.Trial, folder: Path, log: Path, lock: int) -> bool:
    """Run the experiment in a new clone; return whether it was completed, and not pruned. Raises Failed if DVC fails.

    lock: descriptor of the trial's lock. DVC holds it too, so that nobody takes the trial if only this process dies.
    """
    command = [*DVC, "exp", "run", "--name", sweep.experiment(trial.number)]
    for key, value in (sweep.plan.fixed | trial.params).items():
        command += ["-S", override(key, value)]
    _clone(sweep, folder, log)
    (folder / CURVE).unlink(missing_ok=True)  # the baseline's
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, process_group=0, pass_fds=[lock]
        )
    reported = 0
    try:
        while process.poll() is None:
            time.sleep(POLL_S)
            if (sweep.folder / STOP).exists():
                raise Stopped("Sweep stopped. To continue, run: chargpt sweep")
            reported = _report(trial, folder / CURVE, reported)
            if trial.should_prune():
                return False
    finally:
        if process.poll() is None:
            stop(process)
    if process.returncode:
        raise Failed(f"{reason(log.read_text('utf-8', 'replace'), process.returncode)}; see {log}")
    return True


def stop(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to the process group, so that a training saves, and wait until no process of it is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        while True:
            process.poll()  # reaps it
            os.killpg(process.pid, 0)
            time.sleep(0.05)


def _report(trial: optuna.Trial, curve: Path, reported: int) -> int:
    """Report the rows of the curve after the first ones to Optuna; return the number of rows reported so far."""
    try:
        rows = read_curve(curve)[reported:]
    except (ChargptError, OSError):  # not there yet, or not readable over NFS for a moment
        return reported
    for row in rows:
        trial.report(row.val_loss, row.step)
    return reported + len(rows)


def _objective(sweep: Sweep, name: str, folder: Path) -> float:
    metrics = finite_numbers(parse_json(git("show", f"{sweep.ref(name)}:{METRICS}", folder=folder), METRICS))
    if sweep.plan.objective not in metrics:
        raise Failed(f"{METRICS} has no number {sweep.plan.objective}; choose another objective")
    return metrics[sweep.plan.objective]


def _push(sweep: Sweep, name: str, folder: Path, log: Path) -> None:
    """Send an experiment to origin. Raises ChargptError if it does not arrive."""
    git("remote", "set-url", ORIGIN, origin(sweep.home), folder=folder)
    with locked(sweep.folder / "push.lock"):  # git refuses a push while another one changes the same references
        for pause in (*PAUSES, None):
            try:
                _run([*DVC, "exp", "push", ORIGIN, name], folder, log)
                break
            except ChargptError:
                if pause is None:
                    raise
                time.sleep(pause)
    # DVC is content if there is another experiment of this name
    there = git("ls-remote", ORIGIN, f"refs/exps/*/*/{name}", folder=folder)
    if experiment_commit(sweep, name, folder) not in there.split():
        raise ChargptError(f"{ORIGIN} has another experiment {name}; run: dvc exp remove --git-remote {ORIGIN} {name}")


def experiment_commit(sweep: Sweep, name: str, folder: str | Path) -> str:
    """The commit of an experiment in a clone; empty if there is none, or no intact clone."""
    return (try_git("for-each-ref", "--format=%(objectname)", sweep.ref(name), folder=folder) or "").strip()
