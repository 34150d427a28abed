"""Values of params.yaml as `dvc exp run -S` takes them, and the command that continues a legacy model."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chargpt.files import read_json, refuse_link
from chargpt.params import check_value

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


def override(key: str, value: bool | int | float | str | None) -> str:
    """`key=value` as `dvc exp run -S` takes it, text in Hydra's quotes."""
    if not isinstance(value, str):
        return f"{key}={json.dumps(value)}"
    value = re.sub(r"(\\+)(?='|\Z)", r"\1\1", value)  # Hydra reads two backslashes as one before a quote, only there
    return f"{key}='" + value.replace("'", "\\'") + "'"


def legacy_settings(path: Path) -> dict[str, Any]:
    """The training settings of a legacy config.json, as values of params.yaml that continue training as before.

    Raises ChargptError if params.yaml does not allow one of the values.
    """
    refuse_link(path)
    config = read_json(path)
    settings: dict[str, Any] = {
        name: config[name] for name in ("batch_size", "max_iters", "eval_interval", "device") if name in config
    }
    if "learning_rate" in config:
        settings |= {"lr": config["learning_rate"]} | LEGACY_LOOP
    for key, value in settings.items():
        check_value(key, value, str(path))
    return settings


def continue_training(
    sizes: Mapping[str, int | float], dialect: str, weights_dir: Path, corpus: Path, config: Path | None
) -> str:
    """The `dvc exp run` command with which the pipeline continues the training of a legacy model.

    sizes: as LegacyWeights has them. dialect: `auto` if the pipeline is to find it again. config: the legacy
    config.json, whose training settings the command repeats. Raises ChargptError if params.yaml does not allow one.
    """
    legacy_dir = weights_dir.parent if weights_dir.name == "weights" else Path("DIRECTORY_OF_WEIGHTS")
    values: dict[str, Any] = {"init": "migrated", "legacy_dir": legacy_dir.as_posix(), "corpus": corpus.as_posix()}
    if dialect != "auto":
        values["dialect"] = dialect
    values |= {key: value for key, value in sizes.items() if key != "vocab_size"}
    values |= legacy_settings(config) if config else {}
    plain = re.compile(r"[\w./-]+")  # needs no quotes
    words = [f"{k}={v}" if plain.fullmatch(str(v)) else override(k, v) for k, v in values.items()]
    return "dvc exp run " + " ".join(f"-S {shlex.quote(word)}" for word in words)
