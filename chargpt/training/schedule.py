"""The learning rate of each update."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chargpt.params import Params


def rate_factor(step: int, params: Params) -> float:
    """The learning rate of update `step` (from 0) as a fraction of the peak rate, in [0, 1].

    It rises in a straight line during warmup_iters, then falls in a straight line towards final_lr_fraction.
    """
    if step < params.warmup_iters:
        return (step + 1) / (params.warmup_iters + 1)
    left = 1 - (step - params.warmup_iters) / max(1, params.max_iters - params.warmup_iters)
    return params.final_lr_fraction + (1 - params.final_lr_fraction) * left
