"""Read params.yaml exactly as DVC reads it. The file may come from a stranger."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent

from chargpt.errors import ChargptError, escape
from chargpt.params import Params, check_params, show_value

PARAMS_FILE = "params.yaml"
FLAT = "write one `key: value` a line, or type: git checkout {}"
MAX_BYTES = 50_000  # a params.yaml is about one page; the parser takes a second for so many bytes
MAX_DEPTH = 10  # levels of nested lists; the parser takes minutes for thousands


def load_params(path: str | Path = PARAMS_FILE) -> Params:
    """Read and check the whole of a params.yaml.

    Raises ChargptError with one line per problem: the key, the value found, what is allowed, or the nearest valid name.
    """
    return check_params(read_yaml(Path(path)), path)


def read_yaml(path: Path) -> dict[str, Any]:
    """Parse with the parser and version that DVC uses, so that every value reads as DVC reads it."""
    if not path.is_file():
        raise ChargptError(f"{path}: no such file here; give its path, or run from the project's root")
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ChargptError(f"{path}: larger than {MAX_BYTES} bytes; it should hold one short line per parameter")
    try:
        text = raw.decode("utf-8")
        with warnings.catch_warnings(action="ignore"):  # the parser warns, in many lines, about the older YAML 1.1
            _refuse_bombs(path, text)
            values = YAML(typ="safe").load(text)
    except ChargptError:
        raise
    except UnicodeDecodeError as error:
        raise ChargptError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        problem = escape(error.problem).split(" with value")[0]
        raise ChargptError(f"{path}: line {line}: {problem}: it is there twice; keep one of the two lines") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ChargptError(
            f"{path}: line {line}: not valid YAML: {escape(error.problem)}; {FLAT.format(path)}"
        ) from None
    except Exception as error:  # for odd tags and keys, the parser raises errors of many types
        raise ChargptError(
            f"{path}: not valid YAML: {escape(error) or type(error).__name__}; {FLAT.format(path)}"
        ) from None
    if not isinstance(values, dict):
        raise ChargptError(
            f"{path}: found {type(values).__name__}, expected lines of the form `key: value`; {FLAT.format(path)}"
        )
    return {_name(key): value for key, value in values.items()}


def _refuse_bombs(path: Path, text: str) -> None:
    """Raise ChargptError if the text could expand to something huge: named lists or mappings, or deep nesting.

    With names (anchors), a short file can hold ten times a list that holds ten times another list, and so on.
    """
    depth = 0
    for event in YAML(typ="safe").parse(text):
        if isinstance(event, CollectionStartEvent):
            depth += 1
            where = f"{path}: line {event.start_mark.line + 1}"
            if event.anchor:
                raise ChargptError(f"{where}: an anchor (&) on a list or mapping; write its values out")
            if depth > MAX_DEPTH:
                raise ChargptError(
                    f"{where}: lists or mappings are nested more than {MAX_DEPTH} deep; {FLAT.format(path)}"
                )
        elif isinstance(event, CollectionEndEvent):
            depth -= 1


def _name(key: object) -> str:
    """A key as text that can be compared and shown. A valid key is short text; a stranger's may be anything."""
    return (key if isinstance(key, str) else show_value(key)).encode("utf-8", "backslashreplace").decode("utf-8")
