"""The state of a sweep: Optuna's journal, and the clones in which trials run. Everything lies in one directory."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
from filelock import lock_descriptor
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from chargpt.errors import ChargptError
from chargpt.sweep.plan import Plan, distributions, make_engine

JOURNAL, STOP = "journal.log", "stop"  # the second file asks the workers to save and end
FIXED = ("space", "fixed", "objective", "direction", "sampler", "pruner")  # keys of a plan, from the first trial on
PLAN, BASELINE, BEGAN = "plan", "baseline", "began"  # attributes of a study


@dataclass(frozen=True)
class Sweep:
    """A sweep. baseline: the commit from which every trial starts."""

    folder: Path
    study: optuna.Study
    plan: Plan
    baseline: str

    @property
    def home(self) -> Path:
        """The clone of the project in which the sweep was started."""
        return self.folder.parents[3]

    def experiment(self, number: int) -> str:
        """The name of a trial's experiment."""
        return f"{self.plan.name}-{number}"

    def clone(self, number: int) -> Path:
        """The clone of the project in which a trial runs. Its lock and its checkpoints lie beside it."""
        return self.folder / "clones" / self.experiment(number)

    def ref(self, name: str) -> str:
        """The git reference of an experiment."""
        return f"refs/exps/{self.baseline[:2]}/{self.baseline[2:]}/{name}"

    def running(self) -> list[FrozenTrial]:
        """The trials that have begun and not ended, whether or not their process lives."""
        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def create(folder: Path, plan: Plan, baseline: str) -> Sweep:
    """Create a sweep, or open the one in this directory. The budget and the number of workers may have changed.

    Before the first trial, everything may have changed. Raises ChargptError if something else has changed after it.
    """
    (folder / "clones").mkdir(parents=True, exist_ok=True)
    with locked(folder / "create.lock"):
        if has_begun(folder):
            _cut_half_line(folder / JOURNAL)
            sweep = open_sweep(folder)
            if changed := [key for key in FIXED if getattr(sweep.plan, key) != getattr(plan, key)]:
                raise ChargptError(f"sweep {plan.name}: {', '.join(changed)} changed after trial 0; use another name")
            study = sweep.study
        else:
            (folder / JOURNAL).unlink(missing_ok=True)
            study = optuna.create_study(storage=_storage(folder), study_name=plan.name, direction=plan.direction)
            study.set_user_attr(BASELINE, baseline)
        study.set_user_attr(PLAN, plan.model_dump_json())
    return open_sweep(folder)


def _cut_half_line(journal: Path) -> None:
    """Remove the half of a line that a full disk or a crash of the machine leaves at the journal's end."""
    lock = JournalFileSymlinkLock(str(journal))  # Optuna's own: nobody else is writing a line now
    lock.acquire()
    try:
        os.truncate(journal, journal.read_bytes().rfind(b"\n") + 1)
    finally:
        lock.release()


def has_begun(folder: Path) -> bool:
    """Whether the sweep in a directory has a trial."""
    return (folder / JOURNAL).is_file() and bool(open_sweep(folder).study.get_trials(deepcopy=False))


def open_sweep(folder: Path) -> Sweep:
    """Open the sweep in a directory. Raises ChargptError if there is none, or if its journal is damaged."""
    folder = folder.absolute()
    if not (folder / JOURNAL).is_file():
        raise ChargptError(f"{folder}: not the directory of a sweep; run: chargpt sweep sweep.yaml")
    try:
        study = optuna.load_study(study_name=None, storage=_storage(folder))
        plan = Plan.model_validate_json(study.user_attrs[PLAN])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):  # by Optuna
        raise ChargptError(f"{folder / JOURNAL}: is damaged; restore it, or give the sweep another name") from None
    study.pruner = make_engine(optuna.pruners, plan.pruner)
    return Sweep(folder, study, plan, study.user_attrs[BASELINE])


def _storage(folder: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))


@contextlib.contextmanager
def locked(path: Path, blocking: bool = True) -> Iterator[int]:
    """Hold a lock file. Yields its descriptor, or without `blocking` perhaps 0: another process holds it.

    The death of the process frees it, unless a child that was given the descriptor lives on. Raises ChargptError if
    the file system has no locks.
    """
    with path.open("ab") as file:
        try:
            held = lock_descriptor(file.fileno(), blocking=blocking)
        except OSError as error:
            raise ChargptError(
                f"{path}: file locks: {error.strerror}; move the project to another file system"
            ) from None
        yield file.fileno() if held else 0


def busy(sweep: Sweep) -> int:
    """The number of trials that living processes run."""
    count = 0
    for trial in sweep.running():
        with locked(sweep.clone(trial.number).with_suffix(".lock"), blocking=False) as free:
            count += not free
    return count


@contextlib.contextmanager
def next_trial(sweep: Sweep) -> Iterator[tuple[optuna.Trial, int] | None]:
    """An unfinished trial that no living process runs, or a new one; None if the budget is spent.

    Yields it and the descriptor of its lock.
    """
    with contextlib.ExitStack() as held:
        taken = None
        with locked(sweep.folder / "ask.lock"):
            for begun in sweep.running():
                lock = held.enter_context(locked(sweep.clone(begun.number).with_suffix(".lock"), blocking=False))
                # it may have ended since
                if lock and not sweep.study.get_trials(deepcopy=False)[begun.number].state.is_finished():
                    taken = optuna.Trial(sweep.study, begun._trial_id), lock
                    break
            else:
                if not spent(sweep):
                    new = _ask(sweep)
                    taken = new, held.enter_context(locked(sweep.clone(new.number).with_suffix(".lock")))
        yield taken


def _ask(sweep: Sweep) -> optuna.Trial:
    """A new trial. The caller holds a lock, so that no two trials have the same seed."""
    if BEGAN not in sweep.study.user_attrs:
        sweep.study.set_user_attr(BEGAN, time.time())
    begun = len(sweep.study.get_trials(deepcopy=False))
    with warnings.catch_warnings(action="ignore"):  # that a sampler is experimental
        sweep.study.sampler = make_engine(optuna.samplers, sweep.plan.sampler, seed_plus=begun)
    return sweep.study.ask(distributions(sweep.plan))


def spent(sweep: Sweep) -> bool:
    """Whether the budget is spent: no new trial may begin."""
    plan = sweep.plan
    # in seconds since 1970: Optuna's own times are local, and jump with the clocks of summer
    minutes = (time.time() - sweep.study.user_attrs.get(BEGAN, time.time())) / 60
    return (plan.trials is not None and len(sweep.study.get_trials(deepcopy=False)) >= plan.trials) or (
        plan.minutes is not None and minutes >= plan.minutes
    )
