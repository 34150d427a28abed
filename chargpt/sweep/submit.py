"""`chargpt sweep`: refuse what would fail, start workers with submitit, and bring experiments home."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chargpt.errors import ChargptError
from chargpt.files import finite_numbers, read_json
from chargpt.paths import METRICS
from chargpt.project.git import git, remedy, try_git, untracked_code
from chargpt.project.outputs import require_clone
from chargpt.project.remotes import places, relative_remote
from chargpt.runtime.exits import one_line
from chargpt.sweep.plan import Plan, load_plan
from chargpt.sweep.study import Sweep, abandoned, busy_slots, create, has_begun, open_sweep, running, spent
from chargpt.sweep.trial import DVC, ORIGIN, Stopped, experiment_commit, run_trial

if TYPE_CHECKING:
    from submitit import Executor, Job

SWEEPS = Path(".dvc/tmp/sweeps")
LOOK_EVERY_S = 2.0
LONGEST_MIN = 30 * 24 * 60  # minutes that a worker may take; for Slurm, the plan may name fewer


class Worker:
    """What submitit runs: trials, one after the other, until the budget is spent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> None:
        since = time.time()
        with suppress(Stopped):
            while run_trial(open_sweep(self.folder), since):
                pass

    def checkpoint(self) -> Any:
        """What submitit submits again after a time limit or a pre-emption: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def refusals(path: str | Path, plan: Plan) -> Iterator[str]:
    """Yield a line for each thing that would make every trial fail or lose its result; the line says what to type.

    path: of the sweep.yaml, which trials do not read.
    """
    objective = plan.objective
    known = finite_numbers(read_json(METRICS)) if Path(METRICS).is_file() else {}
    if known and objective not in known:
        yield f"{path}: objective is {objective}; it must be a key of {METRICS}: use one of {', '.join(known)}"
    if try_git("remote", "get-url", ORIGIN) is None:
        yield f"no git remote {ORIGIN}, from which trials take the project; type: git remote add {ORIGIN} URL"
        return
    theirs = try_git("ls-remote", ORIGIN, f"refs/exps/*/*/{plan.name}-*")
    if theirs is None:
        yield f"the git remote {ORIGIN} does not answer; type: git ls-remote {ORIGIN}"
    ours = git("for-each-ref", "--format=%(objectname)%09%(refname)", f"refs/exps/*/*/{plan.name}-*")
    for where, listed in ((ORIGIN, theirs), ("this project", ours)):
        if taken := re.findall(rf"/({plan.name}-\d+)$", listed or "", re.MULTILINE):
            yield f"{where} has an experiment {taken[0]} already; give the sweep another name"
    if names := untracked_code():
        yield f"{', '.join(names)}: not known to git, so no trial would have it; {remedy(names)}"
    if git("status", "--porcelain", "--untracked-files=no", "--", ".", f":!{path}").strip():
        yield 'edits that are not committed, so no trial would have them; type: git commit -a -m "..."'
    if not git("branch", "--remotes", "--contains", "HEAD").strip():
        yield f"the present commit is not in {ORIGIN}, so no trial could fetch it; type: git push {ORIGIN} HEAD"
    if remote := relative_remote():
        yield (
            f"the DVC remote {remote} has a relative path, which means another place in each clone; type:"
            f" dvc remote modify {remote} url {Path.cwd() / 'store'} (or another full path)"
        )


def prepare(path: str | Path, new: bool = True) -> Sweep:
    """Check everything, then create the sweep of a sweep.yaml or open it. new: whether it may be created.

    Raises ChargptError with what stands in the way.
    """
    for package in ("optuna", "submitit"):
        try:
            __import__(package)
        except ImportError:
            raise ChargptError(
                f"{package} is not installed; type: pip install -c constraints.txt -e '.[sweep]'"
            ) from None
    plan = load_plan(path)
    require_clone()
    folder = (SWEEPS / plan.name).absolute()
    if not has_begun(folder):
        if not new:
            raise ChargptError(f"sweep {plan.name}: it has no trial yet; type: chargpt sweep {path}")
        if lines := list(refusals(path, plan)):
            raise ChargptError(*lines)
    url = git("remote", "get-url", ORIGIN).strip()
    if Path(url).exists():
        url = str(Path(url).absolute())
    return create(folder, plan, url, git("rev-parse", "HEAD").strip(), places()[0])


def run(sweep: Sweep, say: Callable[[str], None]) -> None:
    """Run workers until the budget is spent and every trial has ended. Experiments come home as they finish.

    say: shows a line to the user. After an interruption, workers on this machine save and end, those of Slurm go on;
    the same call goes on with both.
    """
    executor = _executor(sweep)
    jobs: list[Job[None]] = []
    shown: set[int] = set()
    sweep.stop.unlink(missing_ok=True)
    say(f"sweep {sweep.plan.name}: logs in {sweep.folder}")
    try:
        while True:
            for job in jobs:
                require_no_error(job, sweep.folder / "jobs")
            missing = sweep.plan.workers - alive(sweep, jobs)
            if missing > 0 and not spent(sweep) and (not jobs or missing == sweep.plan.workers):
                jobs += [_start(executor, sweep) for _ in range(missing)]
            elif missing == sweep.plan.workers and abandoned(sweep):
                jobs.append(_start(executor, sweep))
            over = spent(sweep) and not running(sweep)
            for line in bring_home(sweep, shown):
                say(line)
            if over:
                return
            time.sleep(LOOK_EVERY_S)
    except (KeyboardInterrupt, SystemExit):
        say("stopping; the same command continues")
        raise
    finally:
        if sweep.plan.executor == "local":
            sweep.stop.touch()
            while any(not job.done() for job in jobs):
                time.sleep(0.1)
            sweep.stop.unlink(missing_ok=True)


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
    from submitit.core.utils import FailedJobError

    error = job.exception() if job.done() else None
    if isinstance(error, FailedJobError):
        said = re.findall(r"(?m)^[\w.]*Error\b.*", str(error)) or ["no reason is known"]
        reason = one_line(Exception(said[-1])).removeprefix("chargpt.errors.ChargptError: ")
        raise ChargptError(f"a worker failed: {reason}; look in {folder}")


def alive(sweep: Sweep, jobs: Sequence[Job[None]]) -> int:
    """The number of workers that run or wait to run, those of an earlier call included."""
    if sweep.plan.executor == "slurm":
        command = ["squeue", "--noheader", "--format=%i", f"--name={job_name(sweep.plan)}"]
        listed = subprocess.run(command, capture_output=True, text=True)
        if listed.returncode:
            raise ChargptError(f"Slurm does not answer: {one_line(Exception(listed.stderr))}; type: sinfo")
        return len(listed.stdout.split())
    return max(busy_slots(sweep.folder), sum(not job.done() for job in jobs))


def job_name(plan: Plan) -> str:
    """The name of a sweep's jobs."""
    return f"chargpt-{plan.name}"


def _executor(sweep: Sweep) -> Executor:
    from submitit import AutoExecutor

    plan = sweep.plan
    executor = AutoExecutor(folder=sweep.folder / "jobs", cluster=plan.executor)
    wanted = {"name": job_name(plan), "timeout_min": LONGEST_MIN} | (plan.slurm if plan.executor == "slurm" else {})
    try:
        executor.update_parameters(**wanted)
    except (AssertionError, NameError, TypeError, ValueError) as error:
        raise ChargptError(f"slurm: {one_line(error)}; look in submitit's documentation for its parameters") from None
    return executor


def bring_home(sweep: Sweep, shown: set[int]) -> Iterator[str]:
    """Fetch the experiments of finished trials, and yield a line for each trial that ended and is not in `shown`."""
    for trial in sweep.study.get_trials(deepcopy=False):
        if trial.number in shown or not trial.state.is_finished():
            continue
        name = sweep.experiment(trial.number)
        what = trial.state.name.lower()
        if what == "complete":
            if not experiment_commit(name, "."):
                fetch(name)
            what = f"{sweep.plan.objective} {trial.value:.6f}"
        elif what == "fail":
            what = f"failed: {trial.user_attrs.get('error', 'no reason is known')}"
        shown.add(trial.number)
        values = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in trial.params.items()
        )
        yield f"{name}: {values}: {what}"


def fetch(name: str) -> None:
    """Bring an experiment home. Raises ChargptError if DVC cannot."""
    command = [*DVC, "exp", "pull", "--quiet", ORIGIN, name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ChargptError(f"{name}: DVC cannot fetch it: {one_line(Exception(done.stderr))}; type: chargpt check")


def best(sweep: Sweep) -> str:
    """A line about the best trial, with the command that applies it. Raises ChargptError if there is none."""
    try:
        trial = sweep.study.best_trial
    except ValueError:
        raise ChargptError("no trial was completed; look above for the reasons") from None
    name = sweep.experiment(trial.number)
    return f"best: {name}, {sweep.plan.objective} {trial.value:.6f}; next: dvc exp apply {name}"
