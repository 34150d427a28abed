"""The model that training starts from: a new one, or the migrated one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from chargpt.errors import ChargptError
from chargpt.model import GPT, GPTConfig

if TYPE_CHECKING:
    from chargpt.params import Params


def new_model(params: Params, vocab_size: int) -> GPT:
    """A freshly initialised model with params.yaml's architecture, the same for the same seed."""
    torch.manual_seed(params.seed)
    return GPT(
        GPTConfig(vocab_size, params.block_size, params.n_layer, params.n_head, params.n_embd, dropout=params.dropout)
    )


def continued_model(migrated: GPT, params: Params) -> GPT:
    """The migrated model with params.yaml's dropout, to train on; its dialect stays what it was.

    Raises ChargptError listing every size that differs from params.yaml.
    """
    names = ("n_layer", "n_head", "n_embd", "block_size")
    ours, theirs = {name: getattr(params, name) for name in names}, vars(migrated.config)
    different = [name for name in names if ours[name] != theirs[name]]
    if different:
        table = "; ".join(f"{name} is {ours[name]}, the migrated model has {theirs[name]}" for name in different)
        switches = " ".join(f"-S {name}={theirs[name]}" for name in different)
        raise ChargptError(f"params.yaml does not fit init=migrated: {table}; use {switches}")
    model = GPT(replace(migrated.config, dropout=params.dropout))
    model.load_state_dict(migrated.state_dict())
    return model
