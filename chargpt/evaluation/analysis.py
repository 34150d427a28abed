"""Where a model's loss comes from: by position in the context, by character, and along a stretch of text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chargpt.evaluation.loss import character_losses
from chargpt.evaluation.surprise import visible
from chargpt.model.gpt import GPT
from chargpt.text.tokens import Ids
from chargpt.text.vocab import Vocab

HARDEST = 15  # number of characters that are listed
RARE = 0.0005  # fraction of the text; a rarer character is not listed, because its mean loss is left to chance


@dataclass(frozen=True)
class Analysis:
    """The losses of a split: sums in nats (float64) and counts (int64), by position and by character.

    Arrays by position: (block_size,); entry i is about position i + 1 in the context, predicted from i + 1 characters.
    Arrays by character: (vocab_size,); entry i is about the character with id i.
    """

    position_nats: NDArray[np.float64]
    position_counts: NDArray[np.int64]
    character_nats: NDArray[np.float64]
    character_counts: NDArray[np.int64]

    @property
    def val_loss(self) -> float:
        """The mean loss over the split, in nats per character."""
        return float(self.position_nats.sum() / self.position_counts.sum())

    def positions(self) -> list[tuple[int, float]]:
        """Pairs (position in the context, from 1; mean loss in nats there)."""
        rows = zip(self.position_nats, self.position_counts, strict=True)
        return [(place, round(nats / count, 6)) for place, (nats, count) in enumerate(rows, start=1) if count]

    def hardest(self, vocab: Vocab) -> list[tuple[str, int, float]]:
        """The characters with the highest mean loss, hardest first: visible name, count, mean loss in nats.

        Characters that make up less than RARE of the text are left out.
        """
        least = max(1.0, RARE * self.character_counts.sum())
        ids = np.flatnonzero(self.character_counts >= least)
        means = self.character_nats[ids] / self.character_counts[ids]
        order = np.argsort(-means, kind="stable")[:HARDEST]
        return [
            (visible(vocab.itos[i]), int(self.character_counts[i]), round(m, 6))
            for i, m in zip(ids[order], means[order], strict=True)
        ]


def analyse(model: GPT, ids: Ids) -> Analysis:
    """Compute the exact losses over a split in one pass and constant memory. ids: (N,) unsigned integers, N >= 2."""
    block_size, vocab_size = model.config.block_size, model.config.vocab_size
    position_nats, character_nats = np.zeros(block_size), np.zeros(vocab_size)
    position_counts, character_counts = np.zeros(block_size, np.int64), np.zeros(vocab_size, np.int64)
    for targets, nats in character_losses(model, ids):
        (rows, length), flat = targets.shape, targets.flatten().numpy()
        position_nats[:length] += nats.double().sum(0).numpy()
        position_counts[:length] += rows
        character_nats += np.bincount(flat, nats.double().flatten().numpy(), vocab_size)
        character_counts += np.bincount(flat, minlength=vocab_size)
    return Analysis(position_nats, position_counts, character_nats, character_counts)
