"""Write documents: lines or paragraphs, each of which the model begins and ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from chargpt.errors import ChargptError
from chargpt.inference.decoder import IDS, CompiledDecoder, PackedModel
from chargpt.inference.kernel import PENDING, Cache, write
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
    config, start, decoder = model.config, prompt.tolist(), CompiledDecoder(model, BATCH)
    if len(start) > config.block_size:
        raise ChargptError(f"the prompt has {len(start)} characters with its line break; at most {config.block_size}")
    choice, kept, rows = sampling.choice(config.vocab_size), kept_characters(config), random.split(BATCH)
    texts = np.zeros((BATCH, config.block_size), np.int64)
    texts[:, : len(start)] = prompt
    given, at = np.full(BATCH, len(start)), np.zeros(BATCH, np.int64)

    def work(part: slice, cache: Cache) -> IDS:
        numbers = np.stack([row.numbers(STEPS) for row in rows[part]], axis=1)
        return write(model.weights, cache, texts[part], given[part], at[part], prompt, end, kept, numbers, choice)

    def has_ended(document: list[int]) -> bool:
        return len(document) > len(start) and document[-len(end) :] == end.tolist()

    current = [list(start) for _ in range(BATCH)]  # the document of each row
    begun = deque(current)  # those that are not yielded yet
    while True:
        for chosen in decoder.each_part(work).tolist():
            for row, i in enumerate(chosen):
                if i == PENDING:
                    continue
                current[row].append(i)
                if i < 0 or len(current[row]) > LONGEST + len(start):
                    raise ChargptError(NOT_FINITE if i < 0 else f"no document ended within {LONGEST} characters")
                if has_ended(current[row]):
                    current[row] = list(start)
                    begun.append(current[row])
        while has_ended(begun[0]):
            yield np.array(begun.popleft()[len(start) :])
