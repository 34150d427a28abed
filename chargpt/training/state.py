"""The state of a training: everything that changes while a model is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from chargpt.evaluation.curve import Row
from chargpt.model.gpt import GPT
from chargpt.training.optimizers import make_optimizers

if TYPE_CHECKING:
    from chargpt.params import Params


class TrainState:
    """Everything that changes during training. A run that is saved and continued gives the same result.

    Batches and dropout are not part of it: both follow from the seed and the step. dtype: of Muon's matrix products.
    """

    def __init__(self, model: GPT, params: Params, dtype: torch.dtype) -> None:
        self.model = model
        self.optimizers = make_optimizers(model, params, dtype)
        self.step = 0
        self.rows: list[Row] = []
        self.losses: list[Tensor] = []  # of the steps since the last row, one scalar each
        self.best_loss = math.inf
        self.best = self._weights()

    def add_row(self, row: Row) -> None:
        """Append a row to the curve, and keep a copy of the weights if its validation loss is the lowest so far."""
        self.rows.append(row)
        self.losses.clear()
        if row.val_loss < self.best_loss:
            self.best_loss, self.best = row.val_loss, self._weights()

    def tensors(self) -> dict[str, Tensor]:
        """The float32 tensors of a checkpoint, by name, without the losses: those differ between ranks."""
        named = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        named |= {f"best.{name}": t for name, t in self.best.items()}
        for number, optimizer in enumerate(self.optimizers):
            for name, p in self.model.named_parameters():
                for key, t in sorted(optimizer.state.get(p, {}).items()):
                    named[f"optimizer.{number}.{name}/{key}"] = t
        return named

    def facts(self) -> dict[str, Any]:
        """The rest of a checkpoint, as JSON values by name."""
        rows = [astuple(row) for row in self.rows]
        return {"step": self.step, "best_loss": self.best_loss, "rows": rows, "threads": torch.get_num_threads()}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], losses: Tensor) -> None:
        """Continue from a checkpoint of a run with the same model and parameters.

        losses: (n,) float32, of this rank. The number of threads is restored too: it affects the last bits.
        """
        torch.set_num_threads(facts["threads"])
        device = self.model.wte.weight.device
        self.step, self.best_loss = facts["step"], facts["best_loss"]
        self.rows = [Row(*row) for row in facts["rows"]]
        self.losses = list(losses.to(device))
        parameters = dict(self.model.named_parameters())
        weights: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part == "model":
                weights[rest] = tensor
            elif part == "best":
                self.best[rest] = tensor.to(device)
            else:
                number, _, rest = rest.partition(".")
                parameter, _, key = rest.rpartition("/")
                self.optimizers[int(number)].state[parameters[parameter]][key] = tensor.to(device)
        self.model.load_state_dict(weights)

    def _weights(self) -> dict[str, Tensor]:
        return {name: t.clone() for name, t in self.model.state_dict().items()}
