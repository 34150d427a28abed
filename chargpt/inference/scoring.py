"""How surprising a text is: the loss of each of its characters, from the compiled loops, without torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numba import config as numba_config
from numpy.typing import NDArray

from chargpt.errors import ChargptError
from chargpt.inference.decoder import IDS, PackedModel
from chargpt.inference.kernel import Cache, Floats, new_cache, score
from chargpt.inference.sampling import NOT_FINITE, kept_characters

ROWS = 128  # characters that one call of the loops reads, or a window of more: their activations fit the CPU's cache


class Window(NamedTuple):
    """Characters of a text that are read from position 0: ids[first:end], of which those from `known` on are scored."""

    text: int  # its number
    ids: IDS
    first: int
    known: int
    end: int


class Losses(NamedTuple):
    """The losses of consecutive characters of a text: (S,) float64 in nats.

    log_probs: (S, V) float32, of all characters in each place; (0, V) if they were not asked for.
    """

    text: int
    nats: NDArray[np.float64]
    log_probs: Floats


def windows(text: int, ids: IDS, known: int, block_size: int, kept: int) -> Iterator[Window]:
    """Cover a text as generation reads it: when the context is full, its last `kept` characters are read again.

    ids: (N,), N > known >= 1. The characters from `known` on are scored, each in one window.
    """
    first, known = max(0, known - block_size), known
    while known < len(ids):
        end = min(first + block_size + 1, len(ids))
        yield Window(text, ids, first, known, end)
        first, known = end - kept, end


def losses(
    model: PackedModel, texts: Iterable[IDS], known: int = 1, kept: int | None = None, log_probs: bool = False
) -> Iterator[Losses]:
    """Score texts (N,) int64 after their first `known` >= 1 characters, in order, each in one or several pieces.

    kept: characters that are read again when the context is full, 1 to block_size; None for an eighth of the context,
    as in generation. With 1, the windows are those of `evaluate`. A text's losses do not depend on other texts, nor on
    the number of threads. Raises ChargptError if a loss is not finite.
    """
    config = model.config
    kept = kept_characters(config) if kept is None else kept
    cut = (w for i, ids in enumerate(texts) for w in windows(i, ids, known, config.block_size, kept))
    threads = numba_config.NUMBA_NUM_THREADS

    def work(pack: list[Window]) -> list[Losses]:
        return read_pack(model, pack, log_probs)

    with ThreadPoolExecutor(threads) as pool:
        running: deque[Future[list[Losses]]] = deque()
        for pack in packs(cut):
            running.append(pool.submit(work, pack))
            if len(running) > 2 * threads:  # the texts may be larger than memory
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()


def packs(cut: Iterable[Window]) -> Iterator[list[Window]]:
    """Windows to be read together: of ROWS characters together, or one that is longer."""
    pack: list[Window] = []
    rows = 0
    for window in cut:
        length = window.end - window.first - 1
        if pack and rows + length > ROWS:
            yield pack
            pack, rows = [], 0
        pack.append(window)
        rows += length
    if pack:
        yield pack


def read_pack(model: PackedModel, pack: list[Window], log_probs: bool) -> list[Losses]:
    """Score the characters of windows."""
    bounds = np.cumsum([0, *(window.end - window.first - 1 for window in pack)])
    ids = np.concatenate([window.ids[window.first : window.end - 1] for window in pack])
    targets = np.concatenate([window.ids[window.first + 1 : window.end] for window in pack])
    cache = new_cache(replace(model.config, n_layer=1), 1)  # nothing is read again, so all share it
    nats, table = score_ids(model, cache, ids, targets, bounds, 0, log_probs)
    parts = [slice(end - w.end + w.known, end) for w, end in zip(pack, bounds[1:].tolist(), strict=True)]
    return [Losses(w.text, nats[part], table[part]) for w, part in zip(pack, parts, strict=True)]


def score_ids(
    model: PackedModel, cache: Cache, ids: IDS, targets: IDS, bounds: IDS, start: int, log_probs: bool
) -> tuple[NDArray[np.float64], Floats]:
    """The losses of targets (R,) in nats, and all log probabilities (R or 0, V); the arguments are those of `score`."""
    table = np.empty((len(ids) if log_probs else 0, model.config.vocab_size), np.float32)
    nats = score(model.weights, model.config.activation == "relu", cache, ids, targets, bounds, start, table)
    if not np.isfinite(nats).all():
        raise ChargptError(NOT_FINITE)
    return nats, table
