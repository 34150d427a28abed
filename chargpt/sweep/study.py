"""The state of a sweep: Optuna's journal, and the clones in which trials run. Everything lies in one directory."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import zc.lockfile

from chargpt.errors import ChargptError
from chargpt.sweep.plan import Plan, distributions, make_engine

if TYPE_CHECKING:
    from optuna import Study, Trial

JOURNAL = "journal.log"
SLOT = "slot"  # attribute of a trial: the number of the clone in which it runs
PLAN, GIT_URL, BASELINE, CACHE = "plan", "git_url", "baseline", "cache"  # attributes of a study


@dataclass(frozen=True)
class Sweep:
    """A sweep: its directory, its study, and what the study was made with."""

    folder: Path
    study: Study
    plan: Plan

    @property
    def git_url(self) -> str:
        """The git repository that trials clone, and to which they push their experiments."""
        return str(self.study.user_attrs[GIT_URL])

    @property
    def baseline(self) -> str:
        """The commit from which every trial starts."""
        return str(self.study.user_attrs[BASELINE])

    @property
    def cache(self) -> Path:
        """The directory of DVC's cache, which all clones share."""
        return Path(self.study.user_attrs[CACHE])

    def experiment(self, number: int) -> str:
        """The name of a trial's experiment."""
        return f"{self.plan.name}-{number}"

    @property
    def stop(self) -> Path:
        """A file that asks the workers to save and end."""
        return self.folder / "stop"


def create(folder: Path, plan: Plan, git_url: str, baseline: str, cache: Path) -> Sweep:
    """Create a sweep, or open the one in this directory. The budget and the number of workers may have changed.

    Before the first trial, everything may have changed. Raises ChargptError if something else has changed after it.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "create.lock"), _readable(folder):
        _heal(folder)
        if not has_begun(folder):
            (folder / JOURNAL).unlink(missing_ok=True)
        study = optuna.create_study(
            storage=_storage(folder), study_name=plan.name, direction=plan.direction, load_if_exists=True
        )
        if begun := study.get_trials(deepcopy=False):
            old = Plan.model_validate_json(study.user_attrs[PLAN])
            free = {"trials", "minutes", "executor", "workers", "slurm"}
            changed = [key for key in type(plan).model_fields if getattr(old, key) != getattr(plan, key)]
            if fixed := [key for key in changed if key not in free]:
                raise ChargptError(
                    f"sweep {plan.name}: {', '.join(fixed)} changed since its first trial; give the new sweep another"
                    " name"
                )
        about = {PLAN: plan.model_dump_json()}
        if not begun:
            about |= {GIT_URL: git_url, BASELINE: baseline, CACHE: str(cache)}
        for key, value in about.items():
            if study.user_attrs.get(key) != value:
                study.set_user_attr(key, value)
    return open_sweep(folder)


def _heal(folder: Path) -> None:
    """Remove the half of a line that a crash of the machine may leave at the journal's end, if no trial runs."""
    journal = folder / JOURNAL
    if not journal.is_file() or busy_slots(folder):
        return
    content = journal.read_bytes()
    if not content.endswith(b"\n"):
        os.truncate(journal, content.rfind(b"\n") + 1)


def has_begun(folder: Path) -> bool:
    """Whether the sweep in a directory has a trial."""
    if not (folder / JOURNAL).is_file():
        return False
    with _readable(folder):
        storage = _storage(folder)
        return any(storage.get_n_trials(study._study_id) for study in storage.get_all_studies())


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Raise ChargptError in place of the errors that Optuna raises for a damaged journal."""
    try:
        yield
    except ChargptError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise ChargptError(
            f"{folder / JOURNAL}: a damaged line; restore the file, or give the sweep another name"
        ) from None


def open_sweep(folder: Path) -> Sweep:
    """Open the sweep in a directory. Raises ChargptError if there is none."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = folder.absolute()
    if not (folder / JOURNAL).is_file():
        raise ChargptError(f"{folder}: not the directory of a sweep; type: chargpt sweep sweep.yaml")
    with _readable(folder):
        storage = _storage(folder)
        name = storage.get_all_studies()[0].study_name
        study = optuna.load_study(study_name=name, storage=storage, sampler=optuna.samplers.RandomSampler())
        plan = Plan.model_validate_json(study.user_attrs[PLAN])
        study.user_attrs[BASELINE], study.user_attrs[GIT_URL], study.user_attrs[CACHE]
        sampler = make_engine("samplers", plan.sampler, seed_plus=len(study.get_trials(deepcopy=False)))
        pruner = make_engine("pruners", plan.pruner)
        return Sweep(folder, optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=pruner), plan)


def _storage(folder: Path):  # type: ignore[no-untyped-def]
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[int | None]:
    """Hold a lock file. Yields its descriptor, or without `wait` perhaps None: another process holds it.

    The death of the process frees it, unless a child that was given the descriptor lives on.
    """
    lock = None
    while lock is None:
        try:
            lock = zc.lockfile.LockFile(str(path))
        except zc.lockfile.LockError:
            if not wait:
                break
            time.sleep(0.1)
    try:
        yield lock._fp.fileno() if lock else None
    finally:
        if lock is not None:
            lock.close()


@contextlib.contextmanager
def free_slot(sweep: Sweep) -> Iterator[tuple[int, int]]:
    """A clone that no living process uses; one with an unfinished trial, if there is such a clone.

    Yields its number and the descriptor of its lock.
    """
    slots = sweep.folder / "slots"
    slots.mkdir(exist_ok=True)
    unfinished = {trial.user_attrs.get(SLOT) for trial in running(sweep)}
    order = sorted(range(len(os.listdir(slots)) + len(unfinished) + 1), key=lambda slot: slot not in unfinished)
    for slot in [*order, *range(len(order), 10_000)]:
        with locked(slots / f"{slot}.lock", wait=False) as descriptor:
            if descriptor is not None:
                yield slot, descriptor
                return


def abandoned(sweep: Sweep) -> bool:
    """Whether there is an unfinished trial that no living process works on."""
    slots = {trial.user_attrs.get(SLOT) for trial in running(sweep)}
    for slot in slots - {None}:
        with locked(sweep.folder / "slots" / f"{slot}.lock", wait=False) as descriptor:
            if descriptor is not None:
                return True
    return False


def busy_slots(folder: Path) -> int:
    """The number of clones of the sweep in a directory that living processes use."""
    busy = 0
    for lock in (folder / "slots").glob("*.lock"):
        with locked(lock, wait=False) as descriptor:
            busy += descriptor is None
    return busy


def running(sweep: Sweep) -> list:  # type: ignore[type-arg]
    """The trials that have begun and not ended, whether or not their process lives."""
    from optuna.trial import TrialState

    return sweep.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def next_trial(sweep: Sweep, slot: int) -> Trial | None:
    """The unfinished trial of this slot, or a new one; None if the budget is spent."""
    import optuna

    with locked(sweep.folder / "ask.lock"):
        for begun in running(sweep):
            # a trial without a slot: its process died before it could say which
            if begun.user_attrs.get(SLOT, slot) == slot:
                trial = optuna.Trial(sweep.study, begun._trial_id)
                break
        else:
            if spent(sweep):
                return None
            trial = sweep.study.ask(distributions(sweep.plan))
        trial.set_user_attr(SLOT, slot)
    return trial


def spent(sweep: Sweep) -> bool:
    """Whether the budget is spent: no new trial may begin."""
    trials = sweep.study.get_trials(deepcopy=False)
    begun = [trial.datetime_start.timestamp() for trial in trials if trial.datetime_start]
    minutes = (time.time() - min(begun)) / 60 if begun else 0.0
    plan = sweep.plan
    return (plan.trials is not None and len(trials) >= plan.trials) or (
        plan.minutes is not None and minutes >= plan.minutes
    )
