"""Everything that determines the result of a run: parameters, data, code and environment.

A run reads them at its start and compares them at its end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from chargpt.device import pick_dtype
from chargpt.errors import ChargptError

if TYPE_CHECKING:
    from chargpt.params import Params
    from chargpt.training.processes import ProcessGroup

# the keys that determine the weights; the train stage reads them, and the model file records them
TRAINING_KEYS = {
    *("init", "n_layer", "n_head", "n_embd", "block_size", "dropout"),
    *("seed", "device", "dtype", "compile", "batch_size", "max_iters", "eval_interval"),
    *("optimizer", "lr", "warmup_iters", "final_lr_fraction"),
    *("weight_decay", "momentum", "beta1", "beta2", "grad_clip"),
}


def training_values(params: Params) -> dict[str, Any]:
    """The parameters that determine the weights, by key."""
    return {key: getattr(params, key) for key in sorted(TRAINING_KEYS)}


def read_inputs(params: Params, group: ProcessGroup, files: Mapping[str, Path]) -> dict[str, str]:
    """What determines the result, by name: parameters as JSON, the sha256 of each file, and the environment.

    files: data and code, by name.
    """
    inputs = {f"parameter {key}": json.dumps(value) for key, value in training_values(params).items()}
    inputs |= {"torch": torch.__version__, "processes": str(group.size)}
    inputs["computed on"] = f"{group.device} in {pick_dtype(params.dtype, group.device)}"
    for name, path in files.items():
        inputs[name] = "missing"  # as the migrated model, if the stages before did not run and init is scratch
        if path.is_file():
            with path.open("rb") as file:
                inputs[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return inputs


def check_unchanged(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Raise ChargptError if something was edited while training ran; the message names it.

    DVC records parameters and files as they are when a stage ends. After an edit, dvc.lock would therefore describe a
    model that was not trained (treeverse/dvc#11058).
    """
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        raise ChargptError(
            f"changed while training ran: {', '.join(changed)}; dvc.lock would describe a model that was not trained."
            " Undo the change to keep this run's checkpoint, or run again to train with the change"
        )
