"""The learning rate, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chargpt.params import Params


def rate_factor(step: int, params: Params) -> float:
    """The part of its peak rate at which update `step` (from 0) is made: up linearly, then down linearly."""
    if step < params.warmup_iters:
        return (step + 1) / (params.warmup_iters + 1)
    left = 1 - (step - params.warmup_iters) / max(1, params.max_iters - params.warmup_iters)
    return params.final_lr_fraction + (1 - params.final_lr_fraction) * left
