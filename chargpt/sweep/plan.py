"""sweep.yaml: what to vary, how to choose, and where to run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chargpt.errors import ChargptError
from chargpt.params import Params, allowed, check_value, show_value
from chargpt.project.overrides import override
from chargpt.project.params_file import PARAMS_FILE, read_yaml
from chargpt.runtime.exits import one_line

REHEARSED = 12  # trials; samplers choose the first ones at random, ten at most
ENGINE = "a name of Optuna's, or {name: {argument: value}}"
COUNT = "an integer, >= 1"
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
    trials: int | None = Field(None, ge=1, description=COUNT)
    minutes: float | None = Field(None, gt=0, description="a number, > 0")
    space: dict[str, Range | Annotated[list[Value], Field(min_length=1)]] = Field(
        min_length=1,
        description="one or more parameters, each with {low: NUMBER, high: NUMBER}, optionally log: true or a step,"
        " or with a list of values",
    )
    fixed: dict[str, Value] = Field({}, description="parameters, each with a value")
    objective: str = Field("val_loss", description="the name of a metric")
    direction: Literal["minimize", "maximize"] = Field("minimize", description="minimize or maximize")
    sampler: Engine = Field("TPESampler", description=ENGINE)
    pruner: Engine = Field("NopPruner", description=f"{ENGINE}; NopPruner for none")
    executor: Literal["local", "slurm"] = Field("local", description="local or slurm")
    workers: int = Field(1, ge=1, le=1000, description=f"{COUNT}, <= 1000")
    slurm: dict[str, Any] = Field({}, description="submitit's parameters, each with a value")


def load_plan(path: str | Path) -> Plan:
    """Read and check a sweep.yaml. Raises ChargptError with one line per problem."""
    content = read_yaml(Path(path))
    try:
        plan = Plan.model_validate(content)
    except ValidationError as error:
        lines = dict.fromkeys(_problem(content, str(problem["loc"][0])) for problem in error.errors())
        raise ChargptError(*(f"{path}: {line}; see docs/sweeps.md" for line in lines)) from None
    if plan.trials is None and plan.minutes is None:
        raise ChargptError(f"{path}: neither trials nor minutes limits the sweep; set one of them")
    if plan.pruner != "NopPruner" and plan.objective != "val_loss":
        raise ChargptError(f"{path}: a pruner follows the training curve; set objective to val_loss")
    given = {key: [value] for key, value in plan.fixed.items()}
    for key, entry in plan.space.items():
        given[key] = entry if isinstance(entry, list) else [entry.low, entry.high, entry.step or entry.low]
    for key, values in given.items():
        if key not in Params.model_fields:
            raise ChargptError(f"{path}: {key} is not a parameter; use one of {PARAMS_FILE}")
        for value in values:
            check_value(key, value, str(path))
    if both := set(plan.space) & set(plan.fixed):
        raise ChargptError(f"{path}: {min(both)} is in space and in fixed; keep only one of them")
    _rehearse(path, plan)
    return plan


def _problem(content: Mapping[str, Any], key: str) -> str:
    if key not in Plan.model_fields:
        return f"unknown key {show_value(key)}; the keys are {', '.join(Plan.model_fields)}"
    found = show_value(content[key]) if key in content else "missing"
    return f"{key} is {found}; it must be {Plan.model_fields[key].description}"


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


def overrides(plan: Plan, values: Mapping[str, Value]) -> list[str]:
    """Parameters of a trial, each as `dvc exp run -S` takes it.

    Numbers from a range keep six digits, so that they can be read and typed.
    """
    ranges = [key for key, chosen in plan.space.items() if isinstance(chosen, Range)]
    short = {key: float(f"{values[key]:.6g}") for key in ranges if isinstance(values.get(key), float)}
    return [override(key, value) for key, value in (dict(values) | short).items()]
