"""The exact loss over a split, and the figures made of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from chargpt.errors import ChargptError
from chargpt.evaluation.loss import character_losses, evaluate, metrics
from chargpt.model.config import GPTConfig
from chargpt.model.gpt import GPT
from tests.conftest import random_model


@pytest.mark.parametrize(
    ("config", "n", "sizes"),
    [
        (GPTConfig(300_000, 8, 1, 1, 2), 100, [(1, 8)] * 12 + [(1, 3)]),  # a large vocabulary: small passes
        (GPTConfig(11, 2100, 1, 2, 8), 4201, [(1, 2100)] * 2),  # a window longer than a pass
    ],
    ids=str,
)
def test_a_pass_holds_at_least_one_window(config: GPTConfig, n: int, sizes: list[tuple[int, int]]) -> None:
    ids = np.arange(n, dtype=np.uint32) % config.vocab_size
    assert [targets.shape for targets, _ in character_losses(random_model(config), ids)] == sizes


@pytest.mark.parametrize("n", [2, 8, 9, 10, 100])
def test_evaluate_is_the_mean_over_every_window(model: GPT, n: int) -> None:
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, n).astype(np.uint8)
    nats = []
    for start in range(0, n - 1, 8):
        window = torch.from_numpy(ids[start : start + 9].astype(np.int64))
        nats += F.cross_entropy(model(window[None, :-1])[0], window[1:], reduction="none").tolist()
    assert len(nats) == n - 1
    model.train()
    assert evaluate(model, ids) == pytest.approx(sum(nats) / len(nats), rel=1e-6)
    assert model.training


def test_sizes_of_passes(model: GPT) -> None:
    """2,048 characters on a CPU: 256 windows of 8; then what is left, the partial window on its own."""
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, 5000).astype(np.uint8)
    found = list(character_losses(model, ids))
    assert [targets.shape for targets, _ in found] == [(256, 8), (256, 8), (112, 8), (1, 7)]
    assert all(nats.shape == targets.shape and nats.dtype == torch.float32 for targets, nats in found)
    assert torch.cat([targets.flatten() for targets, _ in found]).tolist() == ids[1:].tolist()


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_has_no_dropout_and_leaves_the_models_mode(training: bool) -> None:
    model = random_model(GPTConfig(11, 8, 1, 2, 8, dropout=0.5)).train(training)
    ids = np.arange(100) % 11
    assert evaluate(model, ids) == evaluate(model, ids)
    assert model.training == training
    losses = character_losses(model, ids)
    _, nats = next(losses)
    assert not nats.requires_grad
    losses.close()  # not read to its end
    assert model.training == training


def test_metrics() -> None:
    assert metrics(math.log(2)) == {"val_loss": 0.693147, "bits_per_char": 1.0, "perplexity": 2.0}
    assert metrics(0.0) == {"val_loss": 0.0, "bits_per_char": 0.0, "perplexity": 1.0}
    assert metrics(1.23456789)["val_loss"] == 1.234568
    assert metrics(1e6)["val_loss"] == 1e6
    assert metrics(1e6)["perplexity"] == metrics(701)["perplexity"] > metrics(699)["perplexity"], "no overflow"


@pytest.mark.parametrize("val_loss", [math.nan, math.inf])
def test_metrics_refuse_a_diverged_model(val_loss: float) -> None:
    with pytest.raises(ChargptError, match=f"^the validation loss is {val_loss}: the weights of a diverged model; tr"):
        metrics(val_loss)
