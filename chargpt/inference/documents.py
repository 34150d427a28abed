"""Write documents: lines or paragraphs, each of which the model begins and ends."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import config as numba_config

from chargpt.errors import ChargptError
from chargpt.inference.decoder import IDS, ROWS, PackedModel
from chargpt.inference.kernel import PENDING, Cache, new_cache, write
from chargpt.inference.sampling import NOT_FINITE, Random, Sampling, kept_characters

BATCH = 64  # documents that are written at once
STEPS = 64  # characters of each between two looks at what has ended
LONGEST = 20_000  # characters, after which a document is given up


def write_documents(model: PackedModel, prompt: IDS, end: IDS, sampling: Sampling, random: Random) -> Iterator[IDS]:
    """Yield documents without end, each (N,) int64: what follows `prompt` (P,) up to and including `end` (1 or 2,).

    A batch is refilled as its documents end; they are yielded in the order in which they began, because the short ones
    end first. The same state of `random` gives the same documents. Raises ChargptError if the prompt does not fit the
    context, if a document does not end, or if a prediction is not finite.
    """
    config = model.config
    if len(prompt) > config.block_size:
        raise ChargptError(f"the prompt has {len(prompt)} characters with its line break; at most {config.block_size}")
    choice, kept, rows = sampling.choice(config.vocab_size), kept_characters(config), random.split(BATCH)
    texts = np.zeros((BATCH, config.block_size), np.int64)
    texts[:, : len(prompt)] = prompt
    given, at = np.full(BATCH, len(prompt)), np.zeros(BATCH, np.int64)
    parts = [slice(first, first + ROWS) for first in range(0, BATCH, ROWS)]
    caches = [new_cache(config, ROWS) for _ in parts]

    def work(part: slice, cache: Cache) -> IDS:
        numbers = np.stack([row.numbers(STEPS) for row in rows[part]], axis=1)
        relu, state = config.activation == "relu", (texts[part], given[part], at[part])
        return write(model.weights, relu, cache, *state, prompt, end, kept, numbers, *choice)

    numbers_of, begun = list(range(BATCH)), BATCH  # the number of each row's document, and how many have begun
    written: list[list[int]] = [[] for _ in range(BATCH)]
    ended: dict[int, IDS] = {}
    following = 0
    with ThreadPoolExecutor(numba_config.NUMBA_NUM_THREADS) as pool:
        while True:
            for chosen in np.concatenate(list(pool.map(work, parts, caches)), axis=1).tolist():
                for row, i in enumerate(chosen):
                    if i == PENDING:
                        continue
                    written[row].append(i)
                    if i < 0 or len(written[row]) > LONGEST:
                        raise ChargptError(NOT_FINITE if i < 0 else f"no document ended within {LONGEST} characters")
                    if [*prompt, *written[row]][-len(end) :] == end.tolist():
                        ended[numbers_of[row]] = np.array(written[row])
                        written[row], numbers_of[row], begun = [], begun, begun + 1
            while following in ended:
                yield ended.pop(following)
                following += 1
