"""How surprising a text is: the loss of each of its characters, from the compiled loops, without torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numba import config as numba_config
from numpy.typing import NDArray

from chargpt.errors import ChargptError
from chargpt.inference.decoder import IDS, PackedModel
from chargpt.inference.kernel import Cache, Floats, new_cache, score
from chargpt.inference.sampling import NOT_FINITE, kept_characters

ROWS = 128  # characters, or a few more, that one call of the loops reads: their activations fit the CPU's cache
Window = tuple[IDS, int]  # characters that are read from position 0, and how many of them, at the end, are scored
Losses = tuple[NDArray[np.float64], Floats]  # (S,), nats; and the log probabilities of all characters, (S or 0, V)


def windows(ids: IDS, known: int, block_size: int, kept: int) -> Iterator[Window]:
    """Cover a text as generation reads it: when the context is full, its last `kept` characters are read again.

    ids: (N,), N >= known >= 1. The characters from `known` on are scored, each in one window.
    """
    first = max(0, known - block_size)
    while known < len(ids):
        end = min(first + block_size + 1, len(ids))
        yield ids[first:end], end - known
        first, known = end - kept, end


def losses(
    model: PackedModel, texts: Iterable[IDS], known: int = 1, kept: int | None = None, log_probs: bool = False
) -> Iterator[Losses]:
    """Score texts (N,) int64 after their first `known` >= 1 characters: one text after another, in pieces of any size.

    kept: characters that are read again when the context is full, 1 to block_size; None for an eighth of the context,
    as in generation. With 1, the windows are those of `evaluate`. log_probs: whether to return those of all characters.
    A text's losses do not depend on other texts, nor on the number of threads. Raises ChargptError if a loss is not
    finite.
    """
    config, threads = model.config, numba_config.NUMBA_NUM_THREADS
    kept = kept_characters(config) if kept is None else kept
    with ThreadPoolExecutor(threads) as pool:
        running: deque[Future[Losses]] = deque()
        for pack in packs(window for ids in texts for window in windows(ids, known, config.block_size, kept)):
            running.append(pool.submit(read_pack, model, pack, log_probs))
            if len(running) > 2 * threads:  # the texts may be larger than memory
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def packs(cut: Iterable[Window]) -> Iterator[list[Window]]:
    """Windows to be read together, of ROWS characters or one window more."""
    pack: list[Window] = []
    rows = 0
    for window in cut:
        pack.append(window)
        rows += len(window[0]) - 1
        if rows >= ROWS:
            yield pack
            pack, rows = [], 0
    if pack:
        yield pack


def read_pack(model: PackedModel, pack: list[Window], log_probs: bool) -> Losses:
    """Score the characters of windows."""
    ids, targets = (np.concatenate([window[part] for window, _ in pack]) for part in (slice(-1), slice(1, None)))
    bounds = np.cumsum([0, *(len(window) - 1 for window, _ in pack)])
    cache = new_cache(replace(model.config, n_layer=1), 1)  # nothing is read again, so all share it
    nats, table = score_ids(model, cache, ids, targets, bounds, 0, log_probs)
    scored = np.concatenate([np.arange(end - n, end) for (_, n), end in zip(pack, bounds[1:].tolist(), strict=True)])
    return nats[scored], table[scored] if log_probs else table


def score_ids(
    model: PackedModel, cache: Cache, ids: IDS, targets: IDS, bounds: IDS, start: int, log_probs: bool
) -> Losses:
    """The losses of targets (R,); the other arguments are those of `kernel.score`."""
    table = np.empty((len(ids) if log_probs else 0, model.config.vocab_size), np.float32)
    nats = score(model.weights, cache, ids, targets, bounds, start, table)
    if not np.isfinite(nats).all():
        raise ChargptError(NOT_FINITE)
    return nats, table
