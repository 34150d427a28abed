"""Change params.yaml and keep its comments; find the values with which the pipeline continues a legacy model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from chargpt.errors import ChargptError, escape
from chargpt.files import atomic_path, read_json, refuse_link
from chargpt.params import check_value
from chargpt.project.params_file import load_params

if TYPE_CHECKING:
    from chargpt.model.config import GPTConfig

# how the legacy scripts trained: AdamW with torch's defaults, a constant learning rate, no warm-up, no clipping
LEGACY_LOOP = {
    "optimizer": "adamw",
    "warmup_iters": 0,
    "final_lr_fraction": 1.0,
    "weight_decay": 0.01,
    "beta1": 0.9,
    "beta2": 0.999,
    "grad_clip": 0.0,
}


def write_params(path: str | Path, changes: Mapping[str, Any]) -> None:
    """Change values in a params.yaml; the other values and the comments stay. A new file gets only the changed values.

    changes: new values by key. Raises ChargptError, and changes nothing, if the file would no longer be valid.
    """
    path = Path(os.path.realpath(path))  # the target of a link changes, and the link stays
    for key, value in changes.items():
        check_value(key, value, str(path))
    values = load_editable(path) if path.exists() else {}
    values.update(changes)
    yaml = _comment_keeper()
    with atomic_path(path) as temporary:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            yaml.dump(values, file)
        if path.exists():
            try:
                load_params(temporary)
            except ChargptError as error:
                raise ChargptError(*(line.replace(str(temporary), str(path)) for line in error.args)) from None


def load_editable(path: str | Path) -> Any:
    """The content of a params.yaml, with the comments and quotes that `write_params` keeps.

    Raises ChargptError if the file is not valid.
    """
    load_params(path)
    try:
        return _comment_keeper().load(Path(path).read_text(encoding="utf-8"))
    except MarkedYAMLError as error:  # for tabs that the parser of `load_params` accepts
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ChargptError(f"{path}: line {line}: not valid YAML: {escape(error.problem)}; is there a tab?") from None


def _comment_keeper() -> YAML:
    """A parser that keeps comments and quotes for writing."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 1000
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    return yaml


def legacy_settings(path: Path) -> dict[str, Any]:
    """The training settings of a legacy config.json, as values of params.yaml that continue training as before.

    Raises ChargptError if params.yaml does not allow one of the values.
    """
    refuse_link(path)
    config = read_json(path)
    lines: dict[str, Any] = {
        name: config[name] for name in ("batch_size", "max_iters", "eval_interval", "device") if name in config
    }
    if "learning_rate" in config:
        lines |= {"lr": config["learning_rate"]} | LEGACY_LOOP
    for key, value in lines.items():
        check_value(key, value, str(path))
    return lines


def matching_params(config: GPTConfig, dialect: str) -> dict[str, Any]:
    """The values of params.yaml with which the train stage continues a migrated model."""
    names = ("n_layer", "n_head", "n_embd", "block_size", "dropout")
    return {"init": "migrated", "dialect": dialect} | {name: getattr(config, name) for name in names}
