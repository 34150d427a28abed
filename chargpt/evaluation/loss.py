"""Exact loss over a split: every character but the first is predicted once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from chargpt.errors import ChargptError
from chargpt.model.gpt import GPT
from chargpt.text.documents import PAD
from chargpt.text.tokens import Split, evaluation_batches

# (characters, logits): limits of one forward pass. Both keep the device busy; the CPU's also keep memory small.
CPU_PASS, GPU_PASS = (2048, 1 << 22), (65_536, 1 << 28)


@torch.no_grad()
def character_losses(model: GPT, ids: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the loss of each character but the first, in ordered windows that do not overlap.

    ids: (N,) unsigned integers, N >= 2, or documents. The last window may be partial. Yields the characters to predict,
    (B, T) int64, and their losses in nats, (B, T) float32, both on the CPU; where a document has ended, PAD and 0. The
    model runs without dropout, and then returns to the mode that it was in.
    """
    was_training = model.training
    model.eval()
    block_size = model.config.block_size
    device = model.wte.weight.device
    characters, logits = CPU_PASS if device.type == "cpu" else GPU_PASS
    windows = max(1, min(characters, logits // model.config.vocab_size) // block_size)
    try:
        for batch in evaluation_batches(ids, block_size, windows):
            idx, targets = (torch.from_numpy(part) for part in batch)
            logits = model(idx.to(device))
            nats = F.cross_entropy(
                logits.flatten(0, 1), targets.to(device).flatten(), ignore_index=PAD, reduction="none"
            )
            yield targets, nats.view(targets.shape).cpu()
    finally:
        model.train(was_training)


def evaluate(model: GPT, ids: Split, after_batch: Callable[[], None] = lambda: None) -> float:
    """Mean loss in nats per character over all of `ids` but the first. after_batch: called often; may raise."""
    total = 0.0
    for _, nats in character_losses(model, ids):
        total += nats.double().sum().item()
        after_batch()
    return total / (len(ids) - 1)


def metrics(val_loss: float) -> dict[str, float]:
    """The metrics that are reported for a loss in nats per character.

    bits_per_char = val_loss / ln 2. perplexity = exp(val_loss): the number of equally likely characters to choose from.
    All are rounded to six decimals: so many are reproducible on one machine.
    Raises ChargptError if the loss is not a finite number.
    """
    if not math.isfinite(val_loss):
        raise ChargptError(f"the validation loss is {val_loss}: the weights of a diverged model; train with a lower lr")
    return {
        "val_loss": round(val_loss, 6),
        "bits_per_char": round(val_loss / math.log(2), 6),
        "perplexity": round(math.exp(min(val_loss, 700.0)), 6),  # above 709 a float overflows
    }
