"""The schema of params.yaml: every hyperparameter, its type and its range."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from chargpt.errors import ChargptError

DEVICES = r"^(auto|cpu|mps|cuda(:(0|[1-9][0-9]{0,2}))?)$"
# No option may name a program or another machine: a params.yaml may come from a stranger, and torchrun unpickles
# whatever the machine at a rendezvous address sends.
LAUNCH = r"^(python|torchrun( --standalone)? --nproc[-_]per[-_]node[= ][1-9][0-9]?)$"
PATH = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$"  # no line break, so that a message with the path is one line
PATTERNS = {
    DEVICES: "one of auto, cpu, mps, cuda, cuda:N",
    LAUNCH: "python, or torchrun --standalone --nproc-per-node N",
    PATH: "a path, not empty, without control characters",
}
MAX_REPORTED = 8  # problems named in one message

Positive = Annotated[int, Field(ge=1, le=1_000_000_000)]
Size = Annotated[int, Field(ge=1, le=1_000_000)]
Text = Annotated[str, Field(min_length=1)]
FilePath = Annotated[str, Field(pattern=PATH)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Params(BaseModel):
    """Every value of params.yaml, checked for name, type and range. `check_params` adds rules between values.

    Types are strict: `true` is not a number, and `1.0` and `"3"` are not whole numbers. A whole number is accepted
    for a float. The comments in params.yaml explain each key.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    # data
    corpus: FilePath
    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    legacy_dir: FilePath
    dialect: Literal["auto", "gelu-head", "gelu-embedding", "relu-head", "relu-embedding"]
    # model
    n_layer: Annotated[int, Field(ge=1, le=1000)]
    n_head: Size
    n_embd: Size
    block_size: Size
    dropout: Annotated[float, Field(ge=0, lt=1)]
    # training
    init: Literal["scratch", "migrated"]
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)]
    device: Annotated[str, Field(pattern=DEVICES)]
    dtype: Literal["auto", "float32", "bfloat16"]
    compile: bool
    launch: Annotated[str, Field(pattern=LAUNCH)]
    batch_size: Size
    max_iters: Positive
    max_epochs: Size
    eval_interval: Positive
    optimizer: Literal["muon", "adamw"]
    lr: Annotated[float, Field(gt=0, le=10)]
    warmup_iters: Annotated[int, Field(ge=0, le=1_000_000_000)]
    final_lr_fraction: Annotated[float, Field(ge=0, le=1)]
    weight_decay: Annotated[float, Field(ge=0, le=10)]
    momentum: Beta
    beta1: Beta
    beta2: Beta
    grad_clip: Annotated[float, Field(ge=0, le=1e6)]
    # sampling
    prompt: Text
    num_samples: Annotated[int, Field(ge=1, le=10_000)]
    max_tokens: Annotated[int, Field(ge=1, le=10_000_000)]
    temperature: Annotated[float, Field(ge=0, le=1e6)]
    top_k: Annotated[int, Field(ge=1)] | None
    top_p: Annotated[float, Field(gt=0, le=1)] | None


def check_params(values: Mapping[str, Any], source: str | Path = "params.yaml") -> Params:
    """Check the values of a whole params.yaml and return them as parameters.

    source: the file's name in messages. Raises ChargptError with one line per problem: the key, the value found, what
    is allowed, or the nearest valid name.
    """
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        raise ChargptError(*_problems(source, error)) from None
    if params.n_embd % params.n_head:
        raise ChargptError(
            f"{source}: n_embd={params.n_embd} is not a multiple of n_head={params.n_head};"
            f" try -S n_head={_nearest_divisor(params.n_embd, params.n_head)}"
        )
    if params.warmup_iters > params.max_iters:
        raise ChargptError(
            f"{source}: warmup_iters={params.warmup_iters} is more than max_iters={params.max_iters}:"
            " the learning rate would never reach lr; lower warmup_iters"
        )
    return params


def check_value(key: str, value: object, where: str) -> None:
    """Raise ChargptError if the value is not allowed for the key. where: the file's name in the message."""
    try:
        Params.model_validate({key: value})
    except ValidationError as error:  # always raised, because the other keys are missing
        if any(problem["loc"][0] == key for problem in error.errors()):
            raise ChargptError(f"{where}: {key} is {show_value(value)}; it must be {allowed(key)}") from None


def allowed(field: str) -> str:
    """The values that a key accepts, in words, such as `a number, > 0, <= 10`."""
    return _describe(Params.model_fields[field])


def _problems(source: str | Path, error: ValidationError) -> list[str]:
    """A line for each of the first MAX_REPORTED problems, and one with the number of the others."""
    # pydantic may report several problems of one key; keep one for each
    problems = {str(problem["loc"][0]): problem for problem in error.errors(include_url=False)}
    lines = []
    for key, problem in list(problems.items())[:MAX_REPORTED]:
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, Params.model_fields, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(Params.model_fields)}"
            lines.append(
                f"{source}: unknown key {key if key.isidentifier() and len(key) <= 60 else show_value(key)}: {hint}"
            )
        elif problem["type"] == "missing":
            lines.append(f"{source}: key {key} is missing: add a line `{key}: ...` ({allowed(key)})")
        else:
            value = problem["input"]
            kind = {"str": "text", "bool": "a boolean", "NoneType": "empty"}.get(type(value).__name__, "")
            found = f"{show_value(value)} ({kind})" if kind else show_value(value)
            lines.append(f"{source}: {key} is {found}; it must be {allowed(key)}")
    return lines + ([f"{source}: and {len(problems) - len(lines)} more problems"] if len(problems) > len(lines) else [])


def show_value(value: object) -> str:
    """A value of params.yaml as text of at most one line. Nested values and huge numbers are abbreviated."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    try:
        return short.repr(value)
    except ValueError:  # raised for a number with thousands of digits
        return "a number too long to show"


def _describe(field: FieldInfo) -> str:
    annotation, optional = field.annotation, False
    metadata = list(field.metadata)
    if type(None) in get_args(annotation):
        annotation, optional = next(a for a in get_args(annotation) if a is not type(None)), True
    if get_origin(annotation) is Annotated:
        annotation, *extra = get_args(annotation)
        metadata += [m for e in extra for m in (e.metadata if isinstance(e, FieldInfo) else [e])]
    if get_origin(annotation) is Literal:
        words = "one of " + ", ".join(get_args(annotation))
    elif patterns := [m.pattern for m in metadata if getattr(m, "pattern", None)]:
        words = PATTERNS[patterns[0]]
    else:
        assert isinstance(annotation, type)
        words = {int: "a whole number", float: "a number", str: "text, not empty", bool: "true or false"}[annotation]
    symbols = {Gt: ("gt", ">"), Ge: ("ge", ">="), Lt: ("lt", "<"), Le: ("le", "<=")}
    bounds = [f"{s} {getattr(m, a):.12g}" for m in metadata for t, (a, s) in symbols.items() if isinstance(m, t)]
    return ", ".join([words, *bounds]) + (", or null" if optional else "")


def _nearest_divisor(number: int, wanted: int) -> int:
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: (abs(d - wanted), d))
