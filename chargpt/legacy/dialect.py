"""Find the dialect of legacy weights: what their model computed.

Releases of the legacy code differ in two choices that their files do not record: the activation (ReLU or GELU) and the
attention scale (by head size or by the whole width). A wrong choice gives a higher loss on the text that the model was
trained on. All four combinations are compared on the same characters of this text. The difference between two of them
has a standard error, which shrinks as more text is read: reading continues until one dialect stands out.

An undertrained model can score better in the wrong dialect, however much text is read: training has not yet fitted it
to its own. So the difference must also have a certain size. benchmarks/dialects.py found wrong dialects ahead by up to
0.012 nats in models that predict worse than the frequencies of character pairs, and by up to 0.0013 in others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chargpt.evaluation.loss import character_losses
from chargpt.legacy.directory import DoesNotFitCorpus, LegacyWeights
from chargpt.model.config import DIALECTS, GPTConfig
from chargpt.model.gpt import GPT
from chargpt.text.tokens import Ids

FIRST = 10_000  # characters that are read first; then as many again as were read so far, and so on
CLEAR = 4.0  # standard errors by which a dialect must beat each other one; chance does so once in 30,000
GROUP = 32  # characters whose losses are summed: losses of neighbouring characters are correlated, of groups hardly
MIN_GROUPS = 30  # from fewer, the standard error is not known well enough
MARGIN = 0.003  # nats by which a dialect must beat each other one
UNTRAINED_MARGIN = 0.03  # the same for a model that predicts worse than character pairs do
PAIRS_FROM = 1 << 20  # characters whose pairs are counted


@dataclass(frozen=True)
class Evidence:
    """What the text says about the dialects.

    losses: of each dialect, in nats per character.
    lead: standard errors by which the best is better than the next; at least CLEAR, unless the text ended before.
    characters: number that were read. from_frequencies, from_pairs: loss, in nats per character, of a prediction from
    the frequencies of characters, and of characters after the one before.
    """

    losses: dict[str, float]
    lead: float
    characters: int
    from_frequencies: float
    from_pairs: float

    def ranking(self) -> list[str]:
        """The dialects, the lowest loss first."""
        return sorted(self.losses, key=lambda name: self.losses[name])

    def __str__(self) -> str:
        losses = ", ".join(f"{name} {self.losses[name]:.4f}" for name in self.ranking())
        lead = f"{self.lead:.1f} standard errors apart over {self.characters:,} characters"
        return f"nats per character: {losses}; {lead}"


def weigh_dialects(weights: LegacyWeights, texts: Sequence[Ids]) -> Evidence:
    """Compare the dialects on the texts, read one after the other, until one of them is clearly the best.

    texts: 1-D unsigned ids. With a single head, both attention scales are the same number; only `head` is compared.
    """
    names = [name for name in DIALECTS if weights.sizes["n_head"] > 1 or name.endswith("-head")]
    models = {name: build_model(weights, name) for name in names}
    nats: dict[str, NDArray[np.float64]] = {name: np.empty(0) for name in names}
    losses: dict[str, float] = {}
    lead, read, predicted = 0.0, 0, 0
    for piece in _pieces(texts):
        read, predicted = read + len(piece), predicted + len(piece) - 1
        for name, model in models.items():
            nats[name] = np.append(nats[name], _group_nats(model, piece))
        losses = {name: x.sum() / predicted if np.isfinite(x).all() else math.inf for name, x in nats.items()}
        best = min(names, key=lambda name: losses[name])
        lead = min(_lead(nats[best], nats[name]) for name in names if name != best)
        if lead >= CLEAR:
            break
    counted = texts[-1][:PAIRS_FROM].astype(np.int64)
    singles, pairs = _entropy(counted[:-1]), _entropy(counted[:-1] * weights.sizes["vocab_size"] + counted[1:])
    return Evidence(losses, lead, read, _entropy(counted), pairs - singles)


def _pieces(texts: Sequence[Ids]) -> Iterator[Ids]:
    """The texts in pieces of at least two characters, each as long as all before it together; the first has FIRST."""
    read = 0
    for ids in texts:
        start = 0
        while len(ids) - start >= 2:
            piece = ids[start : start + max(FIRST, read)]
            yield piece
            read += len(piece)
            start += len(piece)


def _group_nats(model: GPT, ids: Ids) -> NDArray[np.float64]:
    """The loss of each GROUP of neighbouring characters of a window, in nats."""
    losses = (nats.double().numpy() for _, nats in character_losses(model, ids))
    return np.concatenate([np.add.reduceat(x, np.arange(0, x.shape[1], GROUP), axis=1).ravel() for x in losses])


def _lead(best: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Standard errors by which `best` is better than `other`, from the differences of each group; 0 for too few groups.

    A dialect whose loss is not finite is behind by infinitely many.
    """
    with np.errstate(invalid="ignore"):  # infinite losses of both
        differences = other - best
    if not np.isfinite(differences).all():
        return math.inf
    if len(differences) < MIN_GROUPS or not differences.any():
        return 0.0
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    return float(differences.mean() / error) if error else math.inf


def choose_dialect(found: Evidence, weights_dir: str | Path = "weights") -> str:
    """The dialect with the lowest loss. weights_dir: named in messages.

    Raises DoesNotFitCorpus if it predicts no better than the text's character frequencies, as no trained model does; if
    the text ended before it clearly beat the next; or if an undertrained model could cause the difference.
    """
    best, second = found.ranking()[:2]
    close = f"the two best dialects are too close to distinguish ({found})"
    margin = UNTRAINED_MARGIN if found.losses[best] >= found.from_pairs else MARGIN
    if not math.isfinite(found.losses[best]):
        raise DoesNotFitCorpus(f"{weights_dir}: the loss is infinite: a diverged model; use an earlier one")
    if found.losses[best] >= found.from_frequencies:
        problem = f"no dialect is better than the text's character frequencies ({found}): pass the model's own text"
    elif found.lead < CLEAR:
        problem = f"{close}; {CLEAR:.0f} standard errors are needed: pass more of the model's own text"
    elif found.losses[second] - found.losses[best] < margin:
        problem = f"the model is undertrained: {close}; {margin} nats are needed: use a later checkpoint"
    else:
        return best
    raise DoesNotFitCorpus(f"{weights_dir}: {problem}, or name the dialect (-S dialect=..., --dialect)")


def build_model(weights: LegacyWeights, dialect: str) -> GPT:
    """The model with the legacy weights, in a dialect such as `relu-embedding`."""
    activation, scale = dialect.split("-")
    config = GPTConfig(**weights.sizes | {"activation": activation, "attention_scale": scale})
    return GPT.from_arrays(config, weights.tensors).eval()


def _entropy(values: NDArray[np.int64]) -> float:
    """The loss of predicting values from their frequencies, in nats for each."""
    counts = np.unique(values, return_counts=True)[1]
    p = counts / len(values)
    return float(-(p * np.log(p)).sum())
