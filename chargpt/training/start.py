"""The model that training starts from: a new model, or the migrated legacy model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from chargpt.errors import ChargptError
from chargpt.model.config import GPTConfig
from chargpt.model.gpt import GPT

if TYPE_CHECKING:
    from chargpt.params import Params


def new_model(params: Params, vocab_size: int) -> GPT:
    """A new model with the architecture in params.yaml. The same seed gives the same initial weights."""
    torch.manual_seed(params.seed)
    return GPT(
        GPTConfig(vocab_size, params.block_size, params.n_layer, params.n_head, params.n_embd, dropout=params.dropout)
    )


def continued_model(migrated: GPT, params: Params) -> GPT:
    """A copy of the migrated model to continue training, with the dropout in params.yaml.

    The copy keeps the activation and the attention scale of the migrated model.
    Raises ChargptError if a size differs from params.yaml; the message lists every such size.
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
