"""Choosing the next character, and generating text with it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from chargpt.errors import ChargptError
from chargpt.model import GPT, KVCache


def choose(
    logits: Tensor, uniform: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """One id per row, drawn from the tempered and truncated distribution by inverting its cumulative sum.

    logits: (B, V) float; uniform: (B,) float64 in [0, 1), the randomness. Returns (B,) int64.
    temperature: 0 takes the most likely. top_k: keep the k most likely (of equals, those with the lower id).
    top_p: keep the fewest most likely whose probabilities reach top_p (Source: Holtzman et al. 2020).
    """
    if not logits.isfinite().all():
        raise ChargptError("the model's predictions are not finite numbers: the weights of a diverged model")
    logits, order = torch.sort(logits.double(), dim=-1, descending=True, stable=True)
    if temperature == 0:
        return order[:, 0]
    # the largest is moved to 0 first, so that no temperature overflows
    probs = torch.softmax((logits - logits[:, :1]) / temperature, dim=-1)
    if top_k is not None:
        probs[:, top_k:] = 0
    if top_p is not None:
        reached = probs.cumsum(-1) / probs.sum(-1, keepdim=True)
        probs[:, 1:].masked_fill_(reached[:, :-1] >= top_p, 0)
    cumulative = probs.cumsum(-1)
    chosen = (cumulative > uniform[:, None] * cumulative[:, -1:]).int().argmax(-1)
    return order.gather(1, chosen[:, None])[:, 0]


def stream(
    model: GPT,
    idx: Tensor,
    max_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """An iterator over the next ids (B,) int64, `max_tokens` of them; the arguments are those of `generate`.

    When the context is full, the last half of it is read again from position 0 and generation goes on:
    learned positions cannot slide along, and reading all again for each character would cost block_size
    times as much. Raises ChargptError for an empty prompt or an argument out of its range.
    """
    if idx.dim() != 2 or idx.size(1) == 0:
        raise ChargptError("generation needs a prompt of at least one character")
    _check_options(max_tokens, temperature, top_k, top_p)
    # Each row has its own stream of randomness, so that a text does not depend on how many are made beside it.
    rows = [_row_generator(generator) for _ in range(idx.size(0))]
    return _stream(model, idx, max_tokens, rows, temperature, top_k, top_p)


@torch.inference_mode()
def _stream(
    model: GPT,
    idx: Tensor,
    max_tokens: int,
    rows: list[torch.Generator],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> Iterator[Tensor]:
    was_training = model.training
    model.eval()
    block_size = model.config.block_size
    device = model.wte.weight.device
    context = idx[:, -block_size:].to(device)
    cache = KVCache(model, idx.size(0))
    unread = context
    try:
        for _ in range(max_tokens):
            if cache.length + unread.size(1) > block_size:
                unread = context = context[:, -max(1, block_size // 2) :]
                cache = KVCache(model, idx.size(0))
            logits = model(unread, cache)[:, -1]
            uniform = torch.stack([torch.rand((), dtype=torch.float64, generator=row) for row in rows]).to(device)
            chosen = choose(logits, uniform, temperature=temperature, top_k=top_k, top_p=top_p)
            yield chosen
            unread = chosen[:, None]
            context = torch.cat([context, unread], dim=1)
    finally:
        model.train(was_training)


def generate(
    model: GPT,
    idx: Tensor,
    max_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continue each row of idx (B, T) int64 by `max_tokens` characters: (B, T + max_tokens) int64.

    temperature: >= 0, 0 takes the most likely character; top_k: >= 1 or None; top_p: in (0, 1] or None.
    generator: a CPU generator to draw from, torch's own if None; the same state gives the same text.
    """
    new = stream(model, idx, max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
    return torch.cat([idx, *(chosen[:, None].to(idx.device) for chosen in new)], dim=1)


def _check_options(max_tokens: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    if max_tokens < 0:
        raise ChargptError(f"max_tokens is {max_tokens}; it must be at least 0")
    if not 0 <= temperature < float("inf"):
        raise ChargptError(f"temperature is {temperature}; it must be a number of at least 0 (0 is greedy)")
    if top_k is not None and top_k < 1:
        raise ChargptError(f"top_k is {top_k}; it must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ChargptError(f"top_p is {top_p}; it must be above 0 and at most 1")


def _row_generator(generator: torch.Generator | None) -> torch.Generator:
    seed = torch.randint(2**63 - 1, (), generator=generator).item()
    return torch.Generator().manual_seed(int(seed))
