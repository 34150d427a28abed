"""The schema of params.yaml: every hyperparameter, its type and its range."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from chargpt.device import DEVICE_PATTERN, DEVICE_WORDS
from chargpt.errors import ChargptError
from chargpt.model.config import MAX_LAYERS, Dialect, GPTConfig

# Neither a program nor another machine can be named: params.yaml is untrusted input, and torchrun unpickles whatever
# the machine at a rendezvous address sends.
LAUNCH = r"^(python|torchrun( --standalone)? --nproc[-_]per[-_]node[= ][1-9][0-9]?)$"
PATH = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$"  # no line break, so that a message with the path is one line
MAX_REPORTED = 8  # problems named in one message
Model = TypeVar("Model", bound=BaseModel)


def _auto_or(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Accept `auto`, or what the field's own bounds allow."""
    return value if value == "auto" else check(value)


AUTO = WrapValidator(_auto_or)  # the text may decide the value, see training/schedule.py


def number(words: str = "a number", **bounds: Any) -> Any:
    """A pydantic field with these bounds (`gt`, `ge`, `lt`, `le`), described by them."""
    symbols = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    description = ", ".join([words, *(f"{symbols[name]} {bound}" for name, bound in bounds.items())])
    return Field(**bounds, description=description)


def whole(**bounds: Any) -> Any:
    """A pydantic field for whole numbers with these bounds, described by them."""
    return number("a whole number", **bounds)


Size = Annotated[int, whole(ge=1, le=1_000_000)]
FilePath = Annotated[str, Field(pattern=PATH, description="a path, not empty, without control characters")]
Beta = Annotated[float, number(ge=0, lt=1)]


class Params(BaseModel):
    """Every value of params.yaml, checked for name, type and range. `check_params` adds rules between values.

    Types are strict: `true` is not a number, and `1.0` and `"3"` are not whole numbers. A whole number is accepted
    for a float. A field's description, or the options of a Literal, are what messages and docs/parameters.md say.
    A field with AUTO may also hold "auto"; `training.schedule.resolve` replaces it by a value of the field's type.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    # data
    corpus: FilePath
    val_fraction: Annotated[float, number(gt=0, lt=1)]
    documents: Literal["whole", "lines", "paragraphs"]
    legacy_dir: FilePath
    dialect: Literal["auto", Dialect]
    # model
    n_layer: Annotated[int, whole(ge=1, le=MAX_LAYERS), AUTO]
    n_head: Annotated[Size, AUTO]
    n_embd: Annotated[Size, AUTO]
    block_size: Annotated[Size, AUTO]
    dropout: Annotated[float, number(ge=0, lt=1), AUTO]
    # training
    init: Annotated[str, Field(pattern=PATH, description="auto, scratch, base, migrated, or a file in models/")]
    seed: Annotated[int, whole(ge=0, le=2**32 - 1)]
    device: Annotated[str, Field(pattern=DEVICE_PATTERN, description=DEVICE_WORDS)]
    dtype: Literal["auto", "float32", "bfloat16"]
    compile: Annotated[bool, Field(description="true or false")]
    launch: Annotated[str, Field(pattern=LAUNCH, description="python, or torchrun --standalone --nproc-per-node N")]
    batch_size: Annotated[Size, AUTO]
    max_iters: Annotated[int, whole(ge=1, le=1_000_000_000), AUTO]
    eval_interval: Annotated[int, whole(ge=1, le=1_000_000_000), AUTO]
    optimizer: Literal["muon", "adamw"]
    lr: Annotated[float, number(gt=0, le=10), AUTO]
    warmup_iters: Annotated[int, whole(ge=0, le=1_000_000_000), AUTO]
    final_lr_fraction: Annotated[float, number(ge=0, le=1)]
    weight_decay: Annotated[float, number(ge=0, le=10), AUTO]
    momentum: Beta
    beta1: Beta
    beta2: Beta
    grad_clip: Annotated[float, number(ge=0, le=1_000_000)]
    # sampling
    prompt: Annotated[str, Field(min_length=1, description="text, not empty")]
    num_samples: Annotated[int, whole(ge=1, le=10_000)]
    max_tokens: Annotated[int, whole(ge=1, le=10_000_000)]
    temperature: Annotated[float, number(ge=0, le=1_000_000)]
    top_k: Annotated[int | None, whole(ge=1)]
    top_p: Annotated[float | None, number(gt=0, le=1)]


def check_params(values: Mapping[str, Any], source: str | Path = "params.yaml") -> Params:
    """Check the values of a whole params.yaml and return them as parameters.

    source: the file's name in messages. Raises ChargptError with one line per problem: the key, the value found, what
    is allowed, or the nearest valid name.
    """
    params = validate(Params, values, source)
    if not {"auto"} & {params.n_embd, params.n_head}:
        try:
            GPTConfig(1, 1, 1, params.n_head, params.n_embd)
        except ChargptError as error:
            raise ChargptError(f"{source}: {error}") from None
    for key, value in values.items():
        if isinstance(value, str) and (value == "???" or "${" in value):
            raise ChargptError(
                f"{source}: {key} is {show_value(value)}; `dvc exp run` would replace ${{...}} and ???, so no value may"
                " have them"
            )
    if not {"auto"} & {params.warmup_iters, params.max_iters} and params.warmup_iters > params.max_iters:
        raise ChargptError(f"{source}: warmup_iters={params.warmup_iters} must not exceed max_iters={params.max_iters}")
    return params


def validate(schema: type[Model], values: Mapping[str, Any], source: str | Path) -> Model:
    """The values as an object of the schema. Raises ChargptError with a line for each of the first problems."""
    if problems := list(_problems(schema, values, source).values()):
        more = len(problems) - MAX_REPORTED
        rest = [f"{source}: and {more} more problems"] if more > 0 else []
        raise ChargptError(*problems[:MAX_REPORTED], *rest)
    return schema.model_validate(values)


def check_value(key: str, value: object, source: str | Path) -> None:
    """Raise ChargptError if params.yaml has no such key, or does not allow it this value."""
    if problem := _problems(Params, {key: value}, source).get(key):  # the other keys are missing
        raise ChargptError(problem)


def allowed(key: str, schema: type[BaseModel] = Params) -> str:
    """The values that a key accepts, in words, such as `a number, > 0, <= 10`."""
    field = schema.model_fields[key]
    options = get_args(field.annotation)
    words = field.description or f"one of {', '.join(options)}"
    words += ", or auto" if AUTO in field.metadata else ""
    return f"{words}, or null" if type(None) in options else words


def _problems(schema: type[BaseModel], values: Mapping[str, Any], source: str | Path) -> dict[str, str]:
    """A line about each key that the schema does not accept. source: the file's name in it."""
    lines: dict[str, str] = {}
    try:
        schema.model_validate(values)
    except ValidationError as error:
        for key in [str(problem["loc"][0]) for problem in error.errors(include_url=False)]:
            if key not in schema.model_fields:
                near = difflib.get_close_matches(key, schema.model_fields, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(schema.model_fields)}"
                shown = key if key.isidentifier() and len(key) <= 60 else show_value(key)
                lines[key] = f"{source}: unknown key {shown}: {hint}"
            elif key not in values:
                lines[key] = f"{source}: key {key} is missing: add a line `{key}: ...` ({allowed(key, schema)})"
            else:
                lines[key] = f"{source}: {key} is {show_value(values[key])}; it must be {allowed(key, schema)}"
    return lines


def show_value(value: object) -> str:
    """A value of params.yaml as text of at most one line. Nested values and huge numbers are abbreviated."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    try:
        return short.repr(value)
    except ValueError:  # raised for a number with thousands of digits
        return "a number too long to show"
