"""The pipeline's hyperparameters: the only reader of params.yaml."""

from __future__ import annotations

import difflib
import os
import reprlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent

from chargpt.errors import ChargptError, shown
from chargpt.files import atomic_path

PARAMS_FILE = "params.yaml"
MAX_BYTES = 50_000  # a params file is a page, and the parser takes a second for this many
MAX_DEPTH = 10  # of lists within lists; the parser takes minutes for thousands
DEVICES = r"^(auto|cpu|mps|cuda(:(0|[1-9][0-9]{0,2}))?)$"
# no option that names a program or another machine: a params.yaml may be a stranger's, and torchrun unpickles
# what the machine at a rendezvous address sends
LAUNCH = r"^(python|torchrun( --standalone)? --nproc[-_]per[-_]node[= ][1-9][0-9]?)$"
PATH = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$"  # a message that names it must stay one line
PATTERNS = {
    DEVICES: "one of auto, cpu, mps, cuda, cuda:N",
    LAUNCH: "python, or torchrun --standalone --nproc-per-node N",
    PATH: "a path, not empty, without control characters",
}
MAX_REPORTED = 8  # problems named at once

Positive = Annotated[int, Field(ge=1, le=1_000_000_000)]
Size = Annotated[int, Field(ge=1, le=1_000_000)]
Text = Annotated[str, Field(min_length=1)]
FilePath = Annotated[str, Field(pattern=PATH)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Params(BaseModel):
    """Every value of params.yaml, checked for name, type, range and the rules between them.

    Types are strict: `true` is no number, `1.0` no whole number, `"3"` neither; a whole number may stand
    for a float. params.yaml explains each key.
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


def load_params(path: str | Path = PARAMS_FILE) -> Params:
    """Read and check the whole of a params.yaml.

    Raises ChargptError with one line per problem: key, value found, what is allowed, nearest valid name.
    """
    values = _read_yaml(Path(path))
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        raise ChargptError("\nerror: ".join(_problems(path, error))) from None
    if params.n_embd % params.n_head:
        raise ChargptError(
            f"{path}: n_embd={params.n_embd} is not a multiple of n_head={params.n_head};"
            f" try -S n_head={_nearest_divisor(params.n_embd, params.n_head)}"
        )
    if params.warmup_iters > params.max_iters:
        raise ChargptError(
            f"{path}: warmup_iters={params.warmup_iters} is more than max_iters={params.max_iters}:"
            " the learning rate would never reach lr; lower warmup_iters"
        )
    return params


def write_params(path: str | Path, changes: Mapping[str, Any]) -> None:
    """Change values in a params.yaml and keep the others and the comments; a new file gets these lines only.

    Raises ChargptError, and changes nothing, if the file would no longer be valid.
    """
    path = Path(os.path.realpath(path))  # a link stays one
    for key, value in changes.items():
        check_value(key, value, str(path))
    values = check_changeable(path) if path.exists() else {}
    values.update(changes)
    yaml = _keeper()
    with atomic_path(path) as temporary:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            yaml.dump(values, file)
        if path.exists():
            try:
                load_params(temporary)
            except ChargptError as error:
                raise ChargptError(str(error).replace(str(temporary), str(path))) from None


def check_changeable(path: str | Path) -> Any:
    """The content of a params.yaml with all that `write_params` keeps. Raises ChargptError if it is not a valid one."""
    load_params(path)
    try:
        return _keeper().load(Path(path).read_text(encoding="utf-8"))
    except MarkedYAMLError as error:  # of tabs, where the other parser takes them
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ChargptError(f"{path}: line {line}: not valid YAML: {shown(error.problem)}; is there a tab?") from None


def _keeper() -> YAML:
    """A parser that keeps comments and quotes for writing."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 1000
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    return yaml


def check_value(key: str, value: object, where: str) -> None:
    """Raise ChargptError, naming the place, if the value is not allowed for the key."""
    try:
        Params.model_validate({key: value})
    except ValidationError as error:  # of the missing keys at least
        if any(problem["loc"][0] == key for problem in error.errors()):
            raise ChargptError(f"{where}: {key} is {_show(value)}; it must be {allowed(key)}") from None


def allowed(field: str) -> str:
    """What a key accepts, in words: `a number, > 0, <= 10`."""
    return _describe(Params.model_fields[field])


def _read_yaml(path: Path) -> dict[str, Any]:
    """Parse with the parser and version that DVC uses, so that every value reads as DVC reads it."""
    if not path.is_file():
        raise ChargptError(f"{path}: no such file; run from the project's root")
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ChargptError(f"{path}: larger than {MAX_BYTES} bytes; it should hold one short line per parameter")
    try:
        text = raw.decode("utf-8")
        with warnings.catch_warnings(action="ignore"):  # of what YAML 1.1 meant, over many lines
            _refuse_bombs(path, text)
            values = YAML(typ="safe").load(text)
    except ChargptError:
        raise
    except UnicodeDecodeError as error:
        raise ChargptError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        problem = shown(error.problem).split(" with value")[0]
        raise ChargptError(f"{path}: line {line}: {problem}: it is there twice; keep one of the two lines") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ChargptError(f"{path}: line {line}: not valid YAML: {shown(error.problem)}") from None
    except Exception as error:  # the parser lets errors of many kinds through for odd tags and keys
        raise ChargptError(f"{path}: not valid YAML: {shown(error) or type(error).__name__}") from None
    if not isinstance(values, dict):
        raise ChargptError(f"{path}: found {type(values).__name__}, expected lines of the form `key: value`")
    return {_name(key): value for key, value in values.items()}


def _refuse_bombs(path: Path, text: str) -> None:
    """Raise ChargptError for what a short file can make large: ten times ten times ten of a list that has a name."""
    depth = 0
    for event in YAML(typ="safe").parse(text):
        if isinstance(event, CollectionStartEvent):
            depth += 1
            where = f"{path}: line {event.start_mark.line + 1}"
            if event.anchor:
                raise ChargptError(f"{where}: an anchor (&) on a list or mapping; write its values out")
            if depth > MAX_DEPTH:
                raise ChargptError(f"{where}: more than {MAX_DEPTH} lists or mappings in one another")
        elif isinstance(event, CollectionEndEvent):
            depth -= 1


def _name(key: object) -> str:
    """A key as text that can be compared and shown; of ours, all are short text."""
    return (key if isinstance(key, str) else _show(key)).encode("utf-8", "backslashreplace").decode("utf-8")


def _problems(path: str | Path, error: ValidationError) -> list[str]:
    """A line for each of the first problems, and how many more there are."""
    problems = {str(problem["loc"][0]): problem for problem in error.errors(include_url=False)}  # a union has several
    lines = []
    for key, problem in list(problems.items())[:MAX_REPORTED]:
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, Params.model_fields, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(Params.model_fields)}"
            lines.append(f"{path}: unknown key {key if key.isidentifier() and len(key) <= 60 else _show(key)}: {hint}")
        elif problem["type"] == "missing":
            lines.append(f"{path}: key {key} is missing: add a line `{key}: ...` ({allowed(key)})")
        else:
            value = problem["input"]
            kind = {"str": "text", "bool": "a boolean", "NoneType": "empty"}.get(type(value).__name__, "")
            found = f"{_show(value)} ({kind})" if kind else _show(value)
            lines.append(f"{path}: {key} is {found}; it must be {allowed(key)}")
    return lines + ([f"{path}: and {len(problems) - len(lines)} more problems"] if len(problems) > len(lines) else [])


def _show(value: object) -> str:
    """A value in at most a line; nested aliases and giant numbers are not written out."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    try:
        return short.repr(value)
    except ValueError:  # a number of thousands of digits
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
