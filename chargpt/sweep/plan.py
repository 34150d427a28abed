"""sweep.yaml: what to vary, how to choose, and where to run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from chargpt.errors import ChargptError
from chargpt.params import Params, allowed, check_params, check_value, show_value
from chargpt.project.overrides import override
from chargpt.project.params_file import PARAMS_FILE, read_yaml
from chargpt.runtime.exits import one_line

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution

REHEARSED = 12  # trials; samplers begin with some at random, ten at the most
COMBINATIONS = 1000  # that are tried before a space is taken to be without a valid one
NAME = r"^[a-z][a-z0-9-]{0,40}$"  # a part of experiments' names and of paths
ENTRY = "{low: ..., high: ...} with numbers, perhaps log: true or step: ..., or a list of values"
Value = bool | int | float | str | None
# a name of Optuna's, or that name with its arguments
Engine = str | Annotated[dict[str, dict[str, Any]], Field(min_length=1, max_length=1)]


class Range(BaseModel):
    """All numbers from `low` to `high`; whole numbers if both are. log: as many below as above the geometric mean."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if not self.low < self.high:
            raise ValueError("low must be below high")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs a low above 0, and no step")
        if self.step is not None and self.step <= 0:
            raise ValueError("step must be above 0")
        if isinstance(self.low, int) and isinstance(self.high, int) and not isinstance(self.step, int | None):
            raise ValueError("step must be a whole number, as low and high are")
        return self


class Plan(BaseModel):
    """The content of a sweep.yaml. The descriptions end messages that begin with "it must be"."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    name: str = Field(pattern=NAME, description="up to 41 of a-z, 0-9 and -, a letter first")
    trials: int | None = Field(None, ge=1, le=1_000_000, description="a whole number, >= 1, <= 1000000")
    minutes: float | None = Field(None, gt=0, description="a number, > 0")
    space: dict[str, Range | Annotated[list[Value], Field(min_length=1)]] = Field(
        min_length=1, description=f"at least one parameter, each with {ENTRY}"
    )
    fixed: dict[str, Value] = Field({}, description="parameters, each with a value")
    objective: str = Field("val_loss", description="the name of a metric")
    direction: Literal["minimize", "maximize"] = Field("minimize", description="minimize or maximize")
    sampler: Engine = Field("TPESampler", description="a name of Optuna's, perhaps with arguments")
    pruner: Engine = Field("NopPruner", description="a name of Optuna's, perhaps with arguments; NopPruner for none")
    executor: Literal["local", "slurm"] = Field("local", description="local or slurm")
    workers: int = Field(1, ge=1, le=1000, description="a whole number, >= 1, <= 1000")
    slurm: dict[str, Any] = Field({}, description="submitit's parameters, each with a value")

    @model_validator(mode="after")
    def _ends(self) -> Plan:
        if self.trials is None and self.minutes is None:
            raise ValueError("trials or minutes must say when the sweep ends")
        if self.pruner != "NopPruner" and self.objective != "val_loss":
            raise ValueError("a pruner watches the training curve, so the objective must be val_loss")
        return self


def load_plan(path: str | Path) -> Plan:
    """Read and check a sweep.yaml. Raises ChargptError with one line per problem."""
    content = read_yaml(Path(path))
    try:
        plan = Plan.model_validate(content)
    except ValidationError as error:
        raise ChargptError(*_lines(path, content, error)) from None
    for key, value in [*_extremes(plan.space), *plan.fixed.items()]:
        if key not in Params.model_fields:
            raise ChargptError(f"{path}: {key} is no parameter; use those of {PARAMS_FILE}")
        check_value(key, value, str(path))
        if isinstance(value, str) and "\0" in value:
            raise ChargptError(f"{path}: {key} holds the character 0, which no command can be given; leave it out")
    if both := set(plan.space) & set(plan.fixed):
        raise ChargptError(f"{path}: {min(both)} is in space and in fixed; keep only one of them")
    _require_a_valid_combination(path, plan)
    make_engine("pruners", plan.pruner, path)
    _try_sampler(path, plan)
    return plan


def _try_sampler(path: str | Path, plan: Plan) -> None:
    """Raise ChargptError if the sampler cannot choose values from this space: it may lack a package, for example."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = make_engine("samplers", plan.sampler, path)
    study = optuna.create_study(sampler=sampler, direction=plan.direction)
    try:
        for loss in range(REHEARSED):
            with warnings.catch_warnings(action="ignore"):
                tell(study, study.ask(distributions(plan)), "COMPLETE", float(loss))
    except Exception as error:  # of many types, by the sampler
        raise ChargptError(
            f"{path}: {type(sampler).__name__} fails with this space: {one_line(error) or type(error).__name__};"
            " look in Optuna's documentation"
        ) from None


def tell(study: Study, trial: Trial, state: str, value: float | None = None) -> None:
    """Record how a trial ended. state: a name of Optuna's TrialState."""
    from optuna.trial import TrialState

    try:
        study.tell(trial, value, state=TrialState[state])
    except RuntimeError as error:  # the trial is recorded; a sampler that has tried everything ends Optuna's own loop
        if "Study.stop" not in str(error):
            raise


def _require_a_valid_combination(path: str | Path, plan: Plan) -> None:
    """Raise ChargptError if params.yaml would refuse every combination of the values, as far as a few of them tell."""
    values: dict[str, list[Value]] = {key: [] for key in plan.space}
    for key, value in _extremes(plan.space):
        values[key].append(value)
    present = read_yaml(Path(PARAMS_FILE)) | plan.fixed
    refused = None
    for combination in islice(product(*values.values()), COMBINATIONS):
        try:
            check_params(present | dict(zip(values, combination, strict=True)), path)
            return
        except ChargptError as error:
            refused = refused or error
    if refused:
        raise refused


def _extremes(space: Mapping[str, Range | list[Value]]) -> Iterator[tuple[str, Value]]:
    """The lowest and highest value of each range, and every value of each list."""
    for key, values in space.items():
        for value in (values.low, values.high) if isinstance(values, Range) else values:
            yield key, value


def _lines(path: str | Path, content: Mapping[str, Any], error: ValidationError) -> list[str]:
    """A line for each key of the file, and of the space."""
    lines: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        first, entry = (*problem["loc"], "", "")[:2]
        key = str(first)
        in_space = key == "space" and entry != ""
        where = f"space.{entry}" if in_space else key
        if problem["type"] == "value_error":  # says more than that the value is no list either
            lines[where] = f"{where}{': ' if where else ''}{problem['msg'].removeprefix('Value error, ')}"
            continue
        if problem["loc"][-1:] == ("[key]",):
            what = f"{where}: {show_value(entry)} is no parameter; use those of {PARAMS_FILE}"
        elif in_space:
            what = f"{where} is {show_value(content[key][entry])}; it must be {ENTRY}"
        elif key not in Plan.model_fields:
            what = f"unknown key {show_value(key)}; the keys are {', '.join(Plan.model_fields)}"
        elif problem["type"] == "missing":
            what = f"key {key} is missing; it must be {Plan.model_fields[key].description}"
        else:
            what = f"{key} is {show_value(content[key])}; it must be {Plan.model_fields[key].description}"
        lines.setdefault(where, what)
    return [f"{path}: {line}; look in docs/sweeps.md" for line in list(lines.values())[:4]]


def make_engine(
    kind: Literal["samplers", "pruners"], engine: Engine, path: str | Path = "sweep.yaml", seed_plus: int = 0
) -> Any:
    """Optuna's sampler or pruner of this name, with these arguments. Raises ChargptError if there is none.

    seed_plus: added to the argument `seed`, because each trial makes its own sampler.
    """
    import optuna

    name, arguments = (engine, {}) if isinstance(engine, str) else next(iter(engine.items()), ("", {}))
    if isinstance(arguments.get("seed"), int) and name != "GridSampler":  # its seed is the order of the grid
        arguments = arguments | {"seed": arguments["seed"] + seed_plus}
    module = getattr(optuna, kind)
    known = [
        known for known in module.__all__ if known.endswith(("Sampler", "Pruner")) and not known.startswith("Base")
    ]
    if name not in known:
        raise ChargptError(f"{path}: {kind[:-1]} is {show_value(name)}; try one of {', '.join(known)}")
    try:
        with warnings.catch_warnings(action="ignore"):  # that an engine is new
            return getattr(module, name)(**arguments)
    except Exception as error:  # of many types, by an engine that was given wrong arguments
        raise ChargptError(
            f"{path}: {kind[:-1]} {name}: {one_line(error) or type(error).__name__}; look in Optuna's documentation"
        ) from None


def distributions(plan: Plan) -> dict[str, BaseDistribution]:
    """The space in Optuna's terms."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    made: dict[str, BaseDistribution] = {}
    for key, values in plan.space.items():
        if isinstance(values, list):
            made[key] = CategoricalDistribution(values)
        elif allowed(key).startswith("a whole number"):
            made[key] = IntDistribution(int(values.low), int(values.high), log=values.log, step=int(values.step or 1))
        else:
            made[key] = FloatDistribution(values.low, values.high, log=values.log, step=values.step)
    return made


def overrides(plan: Plan, chosen: Mapping[str, Value]) -> list[str]:
    """What a trial changes, as `dvc exp run -S` takes it. chosen: by the sampler, a value for each key of the space.

    Numbers from a range keep six digits, so that they can be read and typed.
    """
    values = dict(plan.fixed)
    for key, value in chosen.items():
        between = plan.space[key]
        if isinstance(between, Range) and isinstance(value, float):
            value = min(max(float(f"{value:.6g}"), between.low), between.high)
        values[key] = value
    return [override(key, value) for key, value in values.items()]
