"""sweep.yaml: what to vary, how to choose, and where to run."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from pydantic import BaseModel, ConfigDict, Field

from chargpt.errors import ChargptError
from chargpt.params import allowed, check_value, number, validate, whole
from chargpt.project.params_file import read_yaml
from chargpt.runtime.exits import one_line

REHEARSED = 12  # trials; samplers choose the first ones at random, ten at most
ENGINE = "a name of Optuna's, or {name: {argument: value}}"
Value = bool | int | float | str | None
Engine = str | Annotated[dict[str, dict[str, Any]], Field(min_length=1, max_length=1)]


class Range(BaseModel):
    """All numbers from `low` to `high`, in steps of `step` if it is given. log: sample the logarithm uniformly."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None


class Plan(BaseModel):
    """The content of a sweep.yaml. The descriptions end messages that begin with "it must be"."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    # a part of experiments' names and of paths
    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,40}$", description="a letter, then up to 40 of a-z, 0-9 and -")
    trials: Annotated[int | None, whole(ge=1)] = None
    minutes: Annotated[float | None, number(gt=0)] = None
    space: dict[str, Range | Annotated[list[Value], Field(min_length=1)]] = Field(
        min_length=1,
        description="one or more parameters, each with {low: NUMBER, high: NUMBER}, optionally log: true or a step,"
        " or with a list of values",
    )
    fixed: dict[str, Value] = Field({}, description="parameters, each with a value")
    objective: str = Field("val_loss", description="the name of a metric")
    direction: Literal["minimize", "maximize"] = "minimize"
    sampler: Engine = Field("TPESampler", description=ENGINE)
    pruner: Engine = Field("NopPruner", description=ENGINE)
    executor: Literal["local", "slurm"] = "local"
    workers: Annotated[int, whole(ge=1, le=1000)] = 1
    slurm: dict[str, Any] = Field({}, description="submitit's parameters, each with a value")


def load_plan(path: str | Path) -> Plan:
    """Read and check a sweep.yaml. Raises ChargptError with one line per problem."""
    plan = validate(Plan, read_yaml(Path(path)), path)
    if plan.trials is None and plan.minutes is None:
        raise ChargptError(f"{path}: neither trials nor minutes limits the sweep; set one of them")
    if plan.pruner != "NopPruner" and plan.objective != "val_loss":
        raise ChargptError(f"{path}: a pruner follows the training curve; set objective to val_loss")
    if both := set(plan.space) & set(plan.fixed):
        raise ChargptError(f"{path}: {min(both)} is in space and in fixed; keep only one of them")
    for key, value in plan.fixed.items():
        check_value(key, value, path)
    for key, entry in plan.space.items():
        for value in entry if isinstance(entry, list) else (entry.low, entry.high, entry.step or entry.low):
            check_value(key, value, path)
    _rehearse(path, plan)
    return plan


def _rehearse(path: str | Path, plan: Plan) -> None:
    """Raise ChargptError if Optuna cannot search this space with this sampler, which may lack a package."""
    try:
        with warnings.catch_warnings(action="ignore"):
            make_engine(optuna.pruners, plan.pruner)
            study = optuna.create_study(sampler=make_engine(optuna.samplers, plan.sampler), direction=plan.direction)
            for loss in range(REHEARSED):
                record(study, study.ask(distributions(plan)), TrialState.COMPLETE, loss)
    except Exception as error:  # of many types, by Optuna and the packages that it loads
        raise ChargptError(f"{path}: Optuna: {one_line(error)}; see Optuna's documentation") from None


def record(study: optuna.Study, trial: optuna.Trial, state: TrialState, value: float | None = None) -> None:
    """Record how a trial ended."""
    try:
        study.tell(trial, value, state=state)
    except RuntimeError as error:  # the trial is recorded; a sampler that has tried everything ends Optuna's own loop
        if "Study.stop" not in str(error):
            raise


def make_engine(module: ModuleType, engine: Engine, seed_plus: int = 0) -> Any:
    """The sampler or pruner of a sweep.yaml. module: optuna.samplers or optuna.pruners.

    seed_plus: added to the argument `seed`, because each trial makes its own sampler.
    """
    name, arguments = (engine, {}) if isinstance(engine, str) else next(iter(engine.items()))
    if isinstance(arguments.get("seed"), int) and name != "GridSampler":  # its seed is the order of the grid
        arguments = arguments | {"seed": arguments["seed"] + seed_plus}
    return getattr(module, name)(**arguments)


def distributions(plan: Plan) -> dict[str, BaseDistribution]:
    """The space in Optuna's terms."""
    made: dict[str, BaseDistribution] = {}
    for key, values in plan.space.items():
        if isinstance(values, list):
            made[key] = CategoricalDistribution(values)
        elif allowed(key).startswith("a whole number"):
            made[key] = IntDistribution(int(values.low), int(values.high), log=values.log, step=int(values.step or 1))
        else:
            made[key] = FloatDistribution(values.low, values.high, log=values.log, step=values.step)
    return made
