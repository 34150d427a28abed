"""How long a run trains, when it evaluates, and the learning rate of each update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chargpt.text.tokens import epoch_parts

if TYPE_CHECKING:
    from chargpt.params import Params


@dataclass(frozen=True)
class Schedule:
    """The plan of a run. All but `final_lr_fraction` are numbers of updates."""

    max_iters: int
    eval_interval: int
    warmup_iters: int
    final_lr_fraction: float

    def evaluates(self, step: int) -> bool:
        """Whether to evaluate after `step` updates: at 0, every eval_interval and at the end."""
        return step % self.eval_interval == 0 or step == self.max_iters

    def rate_factor(self, step: int) -> float:
        """The learning rate of update `step` (from 0) as a fraction of the peak rate, in [0, 1].

        It rises in a straight line during warmup_iters, then falls in a straight line towards final_lr_fraction.
        """
        if step < self.warmup_iters:
            return (step + 1) / (self.warmup_iters + 1)
        left = 1 - (step - self.warmup_iters) / max(1, self.max_iters - self.warmup_iters)
        return self.final_lr_fraction + (1 - self.final_lr_fraction) * left


def make_schedule(params: Params, characters: int) -> Schedule:
    """The schedule in params.yaml, made shorter if it would read the text more than max_epochs times.

    characters: to train on. A shorter schedule has all its numbers of updates in proportion.
    """
    windows = math.prod(epoch_parts(characters, params.block_size))
    updates = min(params.max_iters, math.ceil(params.max_epochs * windows / params.batch_size))
    return Schedule(
        updates,
        math.ceil(params.eval_interval * updates / params.max_iters),
        params.warmup_iters * updates // params.max_iters,
        params.final_lr_fraction,
    )
