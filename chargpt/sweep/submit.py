"""`chargpt sweep`: refuse what would fail, start workers with submitit, and bring experiments home."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from submitit import AutoExecutor, Executor, Job
from submitit.core.utils import FailedJobError
from submitit.helpers import Checkpointable

from chargpt.errors import ChargptError
from chargpt.files import finite_numbers, read_json
from chargpt.paths import METRICS
from chargpt.project.check import git_problems
from chargpt.project.git import git
from chargpt.project.outputs import require_clone
from chargpt.project.overrides import override
from chargpt.project.release import dvc
from chargpt.project.remotes import default_remote
from chargpt.runtime.exits import Terminated, one_line
from chargpt.sweep.plan import Plan, load_plan
from chargpt.sweep.study import STOP, Sweep, busy, create, has_begun, open_sweep, spent
from chargpt.sweep.trial import ERROR, ORIGIN, Stopped, experiment_commit, run_trial

SWEEPS = Path(".dvc/tmp/sweeps")
JOB = "chargpt-"  # how the names of jobs start
POLL_S = 2.0  # seconds between looks at the workers and the trials
LONGEST_MIN = 30 * 24 * 60  # minutes that a worker may take; for Slurm, the plan may name fewer


class Worker(Checkpointable):
    """What submitit runs: trials, one after the other, until the budget is spent.

    After a time limit or a pre-emption, submitit submits it again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> None:
        with suppress(Stopped):
            while run_trial(open_sweep(self.folder)):
                pass


def refusals(path: str | Path, plan: Plan) -> Iterator[str]:
    """Yield a line for each thing that would make every trial fail or lose its result, with the command to run.

    path: of the sweep.yaml, which trials do not read. Raises ChargptError if git fails, as without a remote `origin`.
    """
    objective = plan.objective
    known = finite_numbers(read_json(METRICS)) if Path(METRICS).is_file() else {}
    if known and objective not in known:
        yield f"{path}: objective is {objective}; it must be a key of {METRICS}: use one of {', '.join(known)}"
    git("remote", "get-url", ORIGIN)  # names the remote if there is none, which ls-remote does not
    pattern = f"refs/exps/*/*/{plan.name}-*"
    listed = git("ls-remote", ORIGIN, pattern) + git("for-each-ref", pattern)
    if taken := re.search(rf"(?m)/({plan.name}-\d+)$", listed):
        yield f"{ORIGIN} or this project already has an experiment {taken[1]}; give the sweep another name"
    changed = git("diff", "--name-only", "--relative", "-z", "HEAD").split("\0")[:-1]
    if names := [name for name in changed if Path(name).resolve() != Path(path).resolve()]:
        yield f'{", ".join(names)}: not committed, so no trial would have the changes; run: git commit -a -m "..."'
    yield from git_problems()


def prepare(path: str | Path) -> Sweep:
    """Check everything and push the baseline's data, then create the sweep of a sweep.yaml or open it.

    Raises ChargptError with what stands in the way.
    """
    plan = load_plan(path)
    require_clone()
    if not has_begun(SWEEPS / plan.name):
        if lines := list(refusals(path, plan)):
            raise ChargptError(*lines)
        git("push", "--dry-run", "--quiet", ORIGIN, f"HEAD:refs/exps/{plan.name}")
        if default_remote()[0]:
            dvc("push")  # the baseline's data, which every experiment needs
    return create(SWEEPS / plan.name, plan, git("rev-parse", "HEAD").strip())


def run(sweep: Sweep, report: Callable[[str], None]) -> None:
    """Run workers until the budget is spent and every trial has ended. Experiments come home as they finish.

    report: shows a line to the user. After an interruption, workers on this machine save and end, those of Slurm go on;
    the same call continues with both.
    """
    executor = make_executor(sweep)
    jobs: list[Job[None]] = []
    shown: set[int] = set()
    stop = sweep.folder / STOP
    stop.unlink(missing_ok=True)
    report(f"sweep {sweep.plan.name}: logs in {sweep.folder}")
    try:
        while True:
            for job in jobs:
                require_no_error(job, sweep.folder / "jobs")
            working = alive(sweep, jobs)
            if not working or not jobs:
                wanted = min(sweep.plan.workers, len(sweep.running())) if spent(sweep) else sweep.plan.workers
                jobs += [_start(executor, sweep) for _ in range(working, wanted)]
            over = spent(sweep) and not sweep.running()
            for line in bring_home(sweep, shown):
                report(line)
            if over:
                return
            time.sleep(POLL_S)
    except (KeyboardInterrupt, Terminated):
        report("Stopping. Run the same command to continue.")
        raise
    finally:
        if sweep.plan.executor == "local":
            stop.touch()
            while not all(job.done() for job in jobs):
                time.sleep(0.1)
            stop.unlink(missing_ok=True)


def _start(executor: Executor, sweep: Sweep) -> Job[None]:
    """Start a worker. Ctrl-C in the terminal does not reach it: it is asked to stop, and saves."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return executor.submit(Worker(sweep.folder))
    finally:
        signal.signal(signal.SIGINT, before)


def require_no_error(job: Job[Any], folder: Path) -> None:
    """Raise ChargptError if a worker ended by an error of its own; another one would end in the same way.

    folder: of the logs.
    """
    error = job.exception() if job.done() else None
    if isinstance(error, FailedJobError):  # its message holds a traceback
        reasons = re.findall(r"(?m)^(?:chargpt\.errors\.ChargptError: |(?=[\w.]*Error\b))(.*)", str(error))
        raise ChargptError(f"a worker failed: {(reasons or ['unknown reason'])[-1]}; see {folder}")


def alive(sweep: Sweep, jobs: list[Job[None]]) -> int:
    """The number of workers that run or wait to run, those of an earlier call included."""
    if sweep.plan.executor == "slurm":
        command = ["squeue", "--noheader", "--format=%i", f"--name={JOB}{sweep.plan.name}"]
        listed = subprocess.run(command, capture_output=True, text=True)
        if listed.returncode:
            raise ChargptError(f"squeue failed: {' '.join(listed.stderr.split())}; run: sinfo")
        return len(listed.stdout.split())
    return max(busy(sweep), sum(not job.done() for job in jobs))


def make_executor(sweep: Sweep) -> Executor:
    """What starts workers. Raises ChargptError without Slurm, or if submitit does not know a parameter."""
    plan = sweep.plan
    limits = {"timeout_min": LONGEST_MIN} | (plan.slurm if plan.executor == "slurm" else {})
    try:
        executor = AutoExecutor(folder=sweep.folder / "jobs", cluster=plan.executor)
        executor.update_parameters(name=f"{JOB}{plan.name}", **limits)
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
        raise ChargptError(f"{plan.executor}: {one_line(error)}; see submitit's documentation") from None
    return executor


def bring_home(sweep: Sweep, shown: set[int]) -> Iterator[str]:
    """Fetch the experiments of finished trials, and yield a line for each trial that ended and is not in `shown`."""
    for trial in sweep.study.get_trials(deepcopy=False):
        if trial.number in shown or not trial.state.is_finished():
            continue
        name = sweep.experiment(trial.number)
        outcome = trial.state.name.lower()
        if outcome == "complete":
            if not experiment_commit(sweep, name, "."):
                git("fetch", "--quiet", ORIGIN, f"{sweep.ref(name)}:{sweep.ref(name)}")
            outcome = f"{sweep.plan.objective} {trial.value:.6f}"
        elif outcome == "fail":
            outcome = f"failed: {trial.user_attrs[ERROR]}"
        shown.add(trial.number)
        yield f"{name}: {', '.join(override(*item) for item in trial.params.items())}: {outcome}"


def best(sweep: Sweep) -> str:
    """A line about the best trial, with the command that applies it. Raises ChargptError if there is none."""
    try:
        trial = sweep.study.best_trial
    except ValueError:
        raise ChargptError("no trial was completed; see the reasons above") from None
    name = sweep.experiment(trial.number)
    return f"best: {name}, {sweep.plan.objective} {trial.value:.6f}; next: dvc exp apply {name}"
