from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from chargpt.errors import ChargptError
from chargpt.evaluation import character_losses, evaluate, metrics
from chargpt.model import GPT, GPTConfig, KVCache, plain_attention
from tests.conftest import random_model


@pytest.mark.parametrize("at", range(8))
def test_causality(model: GPT, at: int) -> None:
    idx = torch.randint(0, model.config.vocab_size, (2, 8), generator=torch.Generator().manual_seed(1))
    changed = idx.clone()
    changed[:, at] = (changed[:, at] + 1) % model.config.vocab_size
    before, after = model(idx), model(changed)
    assert torch.equal(before[:, :at], after[:, :at])
    assert (before[:, at:] != after[:, at:]).any(-1).all()


def test_attention_written_out_is_torchs() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 7, 4)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
    torch.testing.assert_close(plain_attention(q, k, v, 0.0, 0.3), expected, rtol=0, atol=1e-6)
    dropped = torch.stack([plain_attention(q, k, v, 0.5, 0.3) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(dropped, expected, rtol=0, atol=0.2)


def test_bfloat16_changes_logits_little(model: GPT) -> None:
    idx = torch.randint(0, model.config.vocab_size, (2, 8), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        low = model(idx)
    assert 0 < (low - model(idx)).abs().max() < 0.05 * model(idx).abs().max()


@pytest.mark.parametrize("chunks", [[8], [1] * 8, [3, 5], [5, 1, 2], [1, 7]])
@pytest.mark.parametrize("scale", ["head", "embedding"])
def test_cache_gives_the_same_logits(chunks: list[int], scale: str) -> None:
    model = random_model(GPTConfig(11, 8, 2, 2, 8, attention_scale=scale))
    idx = torch.randint(0, 11, (3, 8), generator=torch.Generator().manual_seed(1))
    cache = KVCache(model, 3)
    parts = [model(part, cache) for part in idx.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(idx), rtol=0, atol=1e-5)
    assert cache.length == 8
    with pytest.raises(ChargptError, match="9 positions do not fit into block_size=8"):
        model(idx[:, :1], cache)


def test_logits_shape_and_dtype(model: GPT) -> None:
    logits = model(torch.zeros(2, 5, dtype=torch.int64))
    assert logits.shape == (2, 5, model.config.vocab_size)
    assert logits.dtype == torch.float32


def test_uniform_logits_score_ln_vocab_size() -> None:
    model = GPT(GPTConfig(65, 16, 1, 2, 8))
    torch.nn.init.zeros_(model.lm_head.weight)
    ids = np.random.default_rng(0).integers(0, 65, 1000).astype(np.uint8)
    assert evaluate(model, ids) == pytest.approx(math.log(65), abs=1e-6)


def test_a_large_vocabulary_is_evaluated_in_small_passes() -> None:
    model = GPT(GPTConfig(300_000, 8, 1, 1, 2)).eval()
    sizes = [targets.shape for targets, _ in character_losses(model, np.arange(100, dtype=np.uint32))]
    assert sizes == [(1, 8)] * 12 + [(1, 3)]


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


def test_metrics() -> None:
    assert metrics(math.log(2)) == {"val_loss": 0.693147, "bits_per_char": 1.0, "perplexity": 2.0}


def test_one_batch_overfits() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(12, 16, 1, 2, 32))
    idx = torch.randint(0, 12, (4, 17))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(200):
        loss = F.cross_entropy(model(idx[:, :-1]).flatten(0, 1), idx[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_dropout_only_in_training() -> None:
    model = random_model(GPTConfig(11, 8, 1, 2, 8, dropout=0.5))
    idx = torch.zeros(1, 8, dtype=torch.int64)
    assert torch.equal(model(idx), model(idx))
    model.train()
    assert not torch.equal(model(idx), model(idx))


@pytest.mark.parametrize(
    "change",
    [{"n_head": 3}, {"n_layer": 0}, {"n_embd": 8.0}, {"dropout": 1}, {"activation": "tanh"}, {"attention_scale": ""}],
)
def test_bad_architectures(change: dict[str, object]) -> None:
    with pytest.raises(ChargptError, match=next(iter(change))):
        GPTConfig(**({"vocab_size": 5, "block_size": 4, "n_layer": 1, "n_head": 2, "n_embd": 8} | change))  # type: ignore[arg-type]
