"""What a text asks of a training: sizes, steps and rates for every `auto`; and the learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chargpt.text.tokens import epoch_parts

if TYPE_CHECKING:
    from chargpt.model.config import GPTConfig
    from chargpt.params import Params

# characters to train on: fewer need small steps; more need no base; and how many are read at most, in all epochs
SHORT, LONG, MOST = 300_000, 1_000_000, 1500 * 24 * 128
FAMILIAR, FOREIGN = 2.3, 4.0  # bits per character, before training: up to the first small steps, from the second large
TUNED = ((50_000, 512, 3), (500_000, 1024, 4), (math.inf, 2048, 3))  # from a model: below, characters a step, epochs


def resolve(params: Params, characters: int, bits: float, source: GPTConfig | None = None) -> Params:
    """The parameters with a value in place of each `auto`. Other values stay, and those that follow from them fit.

    characters: to train on. bits: how foreign they are to the model file that `init` names, per character.
    source: the architecture in that file, whose sizes a model takes that starts from it; None if there is no file.
    """
    values: dict[str, Any] = {}

    def choose(key: str, value: Any) -> Any:
        given = getattr(params, key)
        values[key] = value if given == "auto" else given
        return values[key]

    sizes = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 128}
    fits = source and all(getattr(params, key) in ("auto", getattr(source, key)) for key in list(sizes)[:3])
    init = choose("init", "base" if fits and characters < LONG else "scratch")
    if source and init != "scratch":
        sizes = {key: getattr(source, key) for key in sizes}
    sizes["block_size"] = min(sizes["block_size"], characters - 1)
    for key, value in sizes.items():
        choose(key, value)
    batch, epochs, lr, weight_decay, dropout = 24 * 128, 10, 0.018, 0.25, 0.0  # batch: characters
    documents = params.documents != "whole"
    if init not in ("scratch", "migrated"):  # few passes, in small steps: the model forgets what it knew
        batch, epochs = next((b, e) for n, b, e in TUNED if characters < n)
        foreign = 1.0 if documents else min(max((bits - FAMILIAR) / (FOREIGN - FAMILIAR), 0), 1)
        lr = 0.001 * 3**foreign * (characters / 18_000) ** 0.15
    elif documents:
        batch, epochs, lr, dropout = 3072, 18, 0.012, 0.1
    elif characters < SHORT:
        batch, epochs, lr, weight_decay = 1024, 15, 0.01, 0.5
    choose("dropout", dropout)
    block_size = values["block_size"]
    batch_size = choose("batch_size", max(1, batch // block_size))
    steps = math.ceil(epochs * math.prod(epoch_parts(characters, block_size)) / batch_size)
    max_iters = choose("max_iters", min(steps, max(1, MOST // (batch_size * block_size))))
    choose("eval_interval", math.ceil(max_iters / 5))
    choose("warmup_iters", max_iters * 2 // 75)
    choose("lr", float(f"{lr:.2g}"))
    choose("weight_decay", weight_decay)
    return params.model_copy(update=values)


@dataclass(frozen=True)
class Schedule:
    """The plan of a run. All but `final_lr_fraction` are numbers of steps."""

    max_iters: int
    eval_interval: int
    warmup_iters: int
    final_lr_fraction: float

    def evaluates(self, step: int) -> bool:
        """Whether to evaluate after `step` steps: at 0, every eval_interval and at the end."""
        return step % self.eval_interval == 0 or step == self.max_iters

    def rate_factor(self, step: int) -> float:
        """The learning rate of a step (from 0) as a fraction of the peak rate, in [0, 1].

        It rises in a straight line during warmup_iters, then falls in a straight line towards final_lr_fraction.
        """
        if step < self.warmup_iters:
            return (step + 1) / (self.warmup_iters + 1)
        left = 1 - (step - self.warmup_iters) / max(1, self.max_iters - self.warmup_iters)
        return self.final_lr_fraction + (1 - self.final_lr_fraction) * left
