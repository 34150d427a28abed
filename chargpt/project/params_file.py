"""Read params.yaml exactly as DVC reads it. The file is untrusted input."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from chargpt.errors import ChargptError, escape
from chargpt.params import Params, check_params, show_value

PARAMS_FILE = "params.yaml"


def load_params(path: str | Path = PARAMS_FILE) -> Params:
    """Read and check the whole of a params.yaml.

    Raises ChargptError with one line per problem: the key, the value found, what is allowed, or the nearest valid name.
    """
    return check_params(read_yaml(Path(path)), path)


def read_yaml(path: Path) -> dict[str, Any]:
    """Parse with the parser and version that DVC uses, so that every value reads as DVC reads it."""
    if not path.is_file():
        raise ChargptError(f"{path}: no such file here; give its path, or run from the project's root")
    try:
        with warnings.catch_warnings(action="ignore"):  # the parser warns, in many lines, about the older YAML 1.1
            values = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ChargptError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except Exception as error:  # for odd tags and keys, the parser raises errors of many types
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        where = f"{path}: line {mark.line + 1}" if mark else path
        found = escape(problem) or type(error).__name__
        raise ChargptError(f"{where}: not valid YAML: {found}; correct it, or run: git checkout {path}") from None
    if not isinstance(values, dict):
        raise ChargptError(f"{path}: found {type(values).__name__}, expected `key: value`; run: git checkout {path}")
    return {_name(key): value for key, value in values.items()}


def _name(key: object) -> str:
    """A key as text that can be compared and shown. A key of untrusted input may be anything."""
    return (key if isinstance(key, str) else show_value(key)).encode("utf-8", "backslashreplace").decode("utf-8")
