"""Generate text, character by character."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chargpt.decoder import Options, make_decoder, piece_size
from chargpt.errors import ChargptError
from chargpt.model import GPT

KEPT_PART = 8  # the last 1/8 of a full context is kept: it predicts as well as all of it, and leaves 7/8 free


def stream(
    model: GPT,
    idx: Tensor,
    max_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    exact: bool = False,
) -> Iterator[Tensor]:
    """An iterator that yields the next id of each row, (B,) int64, `max_tokens` times.

    The arguments are those of `generate`. They are checked at the call, before the first id is asked for.
    """
    _check_ids(model, idx)
    _check_options(max_tokens, temperature, top_k, top_p)
    rows = [_row_generator(generator) for _ in range(idx.size(0))]
    pieces = _pieces(model, idx, max_tokens, rows, temperature=temperature, top_k=top_k, top_p=top_p, exact=exact)
    return (ids for piece in pieces for ids in piece.unbind(1))


def _pieces(
    model: GPT,
    idx: Tensor,
    max_tokens: int,
    rows: list[torch.Generator],
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    exact: bool,
) -> Iterator[Tensor]:
    """Yield the next ids of each row in pieces, (B, n) int64 on the CPU."""
    block_size, vocab_size = model.config.block_size, model.config.vocab_size
    options = Options(
        float(temperature), min(top_k or vocab_size, vocab_size), math.inf if top_p is None else float(top_p)
    )
    # number of characters that are read again when the context is full
    kept = block_size if exact else max(1, block_size // KEPT_PART)
    decoder, piece = make_decoder(model, idx.size(0)), piece_size(model)
    recent = unread = idx[:, -block_size:].cpu().numpy()
    while max_tokens:
        if decoder.length + unread.shape[1] > block_size:
            decoder.forget()
            unread = recent[:, -kept:]
        count = min(max_tokens, piece, block_size + 1 - decoder.length - unread.shape[1])
        uniform = np.stack([torch.rand(count, dtype=torch.float64, generator=row).numpy() for row in rows], axis=1)
        chosen = decoder.extend(unread, uniform, options).T
        if chosen.min() < 0:
            raise ChargptError("the model's predictions are not finite numbers: it diverged in training; use another")
        yield torch.from_numpy(chosen)
        unread = chosen[:, -1:]
        recent = np.concatenate([recent, chosen], axis=1)[:, -block_size:]
        max_tokens -= count


def generate(
    model: GPT,
    idx: Tensor,
    max_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    exact: bool = False,
) -> Tensor:
    """Continue each row of idx (B, T) int64 by `max_tokens` characters; return (B, T + max_tokens) int64.

    temperature: >= 0; 0 takes the likeliest character. top_k: >= 1 or None. top_p: in (0, 1] or None.
    generator: a CPU generator, or None for torch's own. The same state of the generator gives the same text.
    exact: what to do when the context is full. Position embeddings are learned, so a full context cannot slide on by
    one character: it must be read again from position 0. If `exact` is true, the last block_size characters are read
    again for each further character, which costs ten times as much. If it is false, the last eighth of the context is
    read again each time that the context is full. A prediction then sees between an eighth of block_size characters
    and all of them, with no measurable loss of quality.
    Raises ChargptError for an empty prompt or an argument out of its range.
    """
    _check_ids(model, idx)
    _check_options(max_tokens, temperature, top_k, top_p)
    rows = [_row_generator(generator) for _ in range(idx.size(0))]
    new = _pieces(model, idx, max_tokens, rows, temperature=temperature, top_k=top_k, top_p=top_p, exact=exact)
    return torch.cat([idx, *(piece.to(idx.device) for piece in new)], dim=1)


def generate_each(
    model: GPT,
    prompts: Sequence[Tensor],
    max_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    exact: bool = False,
) -> list[Tensor]:
    """Continue prompts of different lengths, each (T,) int64, by `max_tokens` characters.

    The options are those of `generate`. Returns one tensor (T + max_tokens,) int64 for each prompt, in their order.
    Prompts of the same length are generated together. The other prompts do not change a text; its place in the list
    does, because that decides its random numbers.
    """
    _check_options(max_tokens, temperature, top_k, top_p)
    options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "exact": exact}
    rows = [_row_generator(generator) for _ in prompts]
    texts = list(prompts)
    for prompt in prompts:
        _check_ids(model, prompt[None])
    for length in sorted({len(prompt) for prompt in prompts}):
        numbers = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        idx = torch.stack([prompts[i] for i in numbers])
        new = _pieces(model, idx, max_tokens, [rows[i] for i in numbers], **options)
        for i, text in zip(numbers, torch.cat([idx, *new], dim=1), strict=True):
            texts[i] = text
    return texts


def _check_ids(model: GPT, idx: Tensor) -> None:
    if idx.dtype != torch.int64:
        raise ChargptError(f"ids are {idx.dtype}; expected torch.int64: use idx.long()")
    if idx.dim() != 2:
        raise ChargptError(f"ids have shape {tuple(idx.shape)}; expected (B, T), one row for each text")
    if idx.numel() == 0:
        raise ChargptError("generation needs a prompt of at least one character")
    if not 0 <= int(idx.min()) <= int(idx.max()) < model.config.vocab_size:
        raise ChargptError(f"ids reach from {idx.min()} to {idx.max()}; the vocabulary has {model.config.vocab_size}")


def _check_options(max_tokens: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    if type(max_tokens) is not int or max_tokens < 0:
        raise ChargptError(f"max_tokens is {max_tokens}; it must be a whole number of at least 0")
    if not 0 <= temperature < float("inf"):
        raise ChargptError(f"temperature is {temperature}; it must be a number of at least 0 (0 is greedy)")
    if top_k is not None and top_k < 1:
        raise ChargptError(f"top_k is {top_k}; it must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ChargptError(f"top_p is {top_p}; it must be above 0 and at most 1")


def _row_generator(generator: torch.Generator | None) -> torch.Generator:
    """A random generator for one row: its text then does not depend on the number of rows."""
    seed = torch.randint(2**63 - 1, (), generator=generator).item()
    return torch.Generator().manual_seed(int(seed))
