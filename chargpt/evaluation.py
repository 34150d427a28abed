"""Exact loss over a split: every character but the first is predicted once."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from chargpt.data import Ids, evaluation_batches
from chargpt.model import GPT

BATCH_CHARACTERS = 2048  # per forward pass: enough to keep a CPU busy, little memory


@torch.no_grad()
def evaluate(model: GPT, ids: Ids) -> float:
    """Mean loss in nats per character over ordered, non-overlapping windows, the last partial one included.

    ids: (N,) unsigned integers, N >= 2. The model is evaluated without dropout and left in its former mode.
    """
    was_training = model.training
    model.eval()
    block_size = model.config.block_size
    device = model.wte.weight.device
    nats, characters = 0.0, 0
    for idx, targets in evaluation_batches(ids, block_size, max(1, BATCH_CHARACTERS // block_size)):
        logits = model(idx.to(device))
        nats += F.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten(), reduction="sum").item()
        characters += targets.numel()
    model.train(was_training)
    return nats / characters


def metrics(val_loss: float) -> dict[str, float]:
    """A loss in nats per character as the figures that are reported, rounded to what one machine repeats.

    bits_per_char = val_loss / ln 2; perplexity = exp(val_loss), the number of equally likely characters.
    """
    return {
        "val_loss": round(val_loss, 6),
        "bits_per_char": round(val_loss / math.log(2), 6),
        "perplexity": round(math.exp(min(val_loss, 700.0)), 6),  # above 709 a float overflows
    }
