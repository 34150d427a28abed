"""Find the dialect of legacy weights: what their model computed.

Releases of the legacy code differ in two choices that their files do not record: the activation (ReLU or GELU) and the
attention scale (by head size or by the whole width). A wrong choice gives a higher loss on the text that the model was
trained on. So the loss of all four combinations on this text is compared.
"""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import cast

import numpy as np
import torch

from chargpt.data import Ids
from chargpt.errors import ChargptError
from chargpt.evaluation import evaluate
from chargpt.legacy.directory import LegacyWeights
from chargpt.model import GPT, Activation, AttentionScale, GPTConfig

DIALECTS = [f"{activation}-{scale}" for activation, scale in product(("gelu", "relu"), ("head", "embedding"))]
SCORED_CHARACTERS = 10_000  # of the text are enough to compare dialects
MIN_MARGIN = 0.005  # nats per character between the best two dialects; less may be chance


class DoesNotFitCorpus(ChargptError):
    """The weights do not fit the text: its vocabulary differs, or the losses on it do not show the dialect."""


def score_dialects(weights: LegacyWeights, ids: Ids) -> dict[str, float]:
    """The loss of the weights on `ids` in each dialect, in nats per character.

    With a single head, both attention scales are the same number. Only `head` is then scored.
    """
    candidates = [name for name in DIALECTS if weights.sizes["n_head"] > 1 or name.endswith("-head")]
    return {name: evaluate(build_model(weights, name), ids) for name in candidates}


def choose_dialect(losses: dict[str, float], without_context: float, weights_dir: str | Path = "weights") -> str:
    """The dialect with the lowest loss (nats per character).

    without_context: the loss of a prediction from the text's character frequencies only; a trained model is better.
    weights_dir: named in messages. Raises DoesNotFitCorpus if no dialect is better than that, or if the losses of the
    best two dialects are too close to tell which is right.
    """
    losses = {name: loss if math.isfinite(loss) else math.inf for name, loss in losses.items()}
    ranking = sorted(losses, key=lambda name: losses[name])
    best, second = ranking[:2]
    table = ", ".join(f"{name} {losses[name]:.4f}" for name in ranking)
    if losses[best] >= without_context:
        raise DoesNotFitCorpus(
            f"{weights_dir}: no dialect explains the text better than its character frequencies do"
            f" ({without_context:.4f} nats per character; {table}): an untrained model, or not the text it was"
            " trained on; pass that text, or name the dialect (dialect in params.yaml, --dialect)"
        )
    if losses[second] - losses[best] < MIN_MARGIN:
        raise DoesNotFitCorpus(
            f"{weights_dir}: the best two dialects are too close to tell ({table}):"
            " name the right one (dialect in params.yaml, --dialect)"
        )
    return best


def build_model(weights: LegacyWeights, dialect: str) -> GPT:
    """The model with the legacy weights, in a dialect such as `relu-embedding`."""
    activation, scale = dialect.split("-")
    config = GPTConfig(
        **weights.sizes, activation=cast(Activation, activation), attention_scale=cast(AttentionScale, scale)
    )
    with torch.device("meta"):
        model = GPT(config)
    model.load_state_dict({name: torch.from_numpy(t) for name, t in weights.tensors.items()}, assign=True)
    return model.eval()


def frequency_loss(ids: Ids) -> float:
    """The loss of predicting ids from their frequencies, which is their entropy, in nats per character."""
    counts = np.bincount(ids)
    p = counts[counts > 0] / len(ids)
    return float(-(p * np.log(p)).sum())
