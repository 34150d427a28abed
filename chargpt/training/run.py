"""The state of a training run: everything that changes while a model is trained."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from chargpt.evaluation.curve import Row
from chargpt.model.gpt import GPT
from chargpt.training.optimizers import make_optimizers

if TYPE_CHECKING:
    from chargpt.params import Params
    from chargpt.training.processes import World


class Run:
    """Everything that changes during training. A run that is saved and continued gives the same result.

    Batches and dropout are not part of the state: both follow from the seed and the step.
    dtype: number format of Muon's matrix products.
    """

    def __init__(self, model: GPT, params: Params, dtype: torch.dtype) -> None:
        self.model = model
        self.optimizers = make_optimizers(model, params, dtype)
        self.step = 0
        self.rows: list[Row] = []
        self.losses: list[Tensor] = []  # of the updates since the last row, one scalar each
        self.best_loss = math.inf
        self.best = self._weights()

    def keep_if_best(self, val_loss: float) -> None:
        """Keep a copy of the weights if `val_loss` is the lowest so far."""
        if val_loss < self.best_loss:
            self.best_loss, self.best = val_loss, self._weights()

    def tensors(self, world: World) -> dict[str, Tensor]:
        """All tensors of the state, by name. Every process must call this, because each has its own losses."""
        named = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        named |= {f"best.{name}": t for name, t in self.best.items()}
        named |= {name: state[key] for name, state, key in self._optimizer_state()}
        losses = torch.stack(self.losses) if self.losses else torch.zeros(0, device=world.device)
        return named | {"losses": world.gather(losses)}

    def facts(self) -> dict[str, Any]:
        """The rest of the state, as JSON values by name."""
        rows = [astuple(row) for row in self.rows]
        return {"step": self.step, "best_loss": self.best_loss, "rows": rows, "threads": torch.get_num_threads()}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any], rank: int) -> None:
        """Continue from a saved state. It must come from a run with the same model and parameters.

        rank: number of this process. The number of threads is restored too, because it affects the last bits of the
        result.
        """
        torch.set_num_threads(facts["threads"])
        device = self.model.wte.weight.device
        self.step, self.best_loss = facts["step"], facts["best_loss"]
        self.rows = [Row(*row) for row in facts["rows"]]
        self.losses = list(tensors.pop("losses")[rank].to(device))
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}}
        parameters = dict(self.model.named_parameters())
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part in parts:
                parts[part][rest] = tensor.to(device)
            else:
                number, _, rest = rest.partition(".")
                parameter, _, key = rest.rpartition("/")
                self.optimizers[int(number)].state[parameters[parameter]][key] = tensor.to(device)
        self.model.load_state_dict(parts["model"])
        self.best = parts["best"]

    def _weights(self) -> dict[str, Tensor]:
        return {name: t.clone() for name, t in self.model.state_dict().items()}

    def _optimizer_state(self) -> Iterator[tuple[str, dict[str, Tensor], str]]:
        for number, optimizer in enumerate(self.optimizers):
            for name, p in self.model.named_parameters():
                for key in sorted(optimizer.state.get(p, {})):
                    yield f"optimizer.{number}.{name}/{key}", optimizer.state[p], key
