from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from chargpt.errors import ChargptError
from chargpt.model.gpt import GPT, CausalSelfAttention, GPTConfig, KVCache, plain_attention
from tests.conftest import random_model

SIZES = {"vocab_size": 5, "block_size": 4, "n_layer": 1, "n_head": 2, "n_embd": 8}


@pytest.mark.parametrize("at", range(8))
def test_causality(model: GPT, at: int) -> None:
    idx = torch.randint(0, model.config.vocab_size, (2, 8), generator=torch.Generator().manual_seed(1))
    changed = idx.clone()
    changed[:, at] = (changed[:, at] + 1) % model.config.vocab_size
    before, after = model(idx), model(changed)
    assert torch.equal(before[:, :at], after[:, :at])
    assert (before[:, at:] != after[:, at:]).any(-1).all()


def test_plain_attention_equals_torchs() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 7, 4)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
    torch.testing.assert_close(plain_attention(q, k, v, 0.0, 0.3), expected, rtol=0, atol=1e-6)


def test_plain_attention_is_used_for_short_windows_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own attention elsewhere: for longer windows, in float32, and after cached positions."""
    fused = []

    def attention(*args: Any, **options: Any) -> torch.Tensor:
        fused.append(args[0].dtype)
        return torch_attention(*args, **options)

    torch_attention = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    monkeypatch.setattr("chargpt.model.gpt.PLAIN_ATTENTION_LENGTH", 4)
    model = random_model(GPTConfig(11, 8, 1, 2, 8))
    idx = torch.arange(8)[None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        short = model(idx[:, :4])
        assert fused == []
        long = model(idx[:, :5])
        assert fused == [torch.bfloat16]
        torch.testing.assert_close(short, long[:, :4], rtol=0, atol=0.05)
        cache = KVCache(model.to(torch.bfloat16), 1)
        model(idx[:, :2], cache)
        assert fused == [torch.bfloat16]
        model(idx[:, 2:4], cache)
        assert fused == [torch.bfloat16] * 2
    model.float()(idx[:, :4])
    assert fused[2:] == [torch.float32]


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


@pytest.mark.parametrize("place", ["drop", "h.0.attn.resid_dropout", "h.1.mlp.dropout"])
def test_every_dropout_drops_in_training_only(place: str) -> None:
    """Behind the embeddings, attention and the feed-forward layer, each on its own."""
    idx = torch.arange(8)[None]
    model = random_model(GPTConfig(11, 8, 2, 2, 8)).train()
    assert torch.equal(model(idx), model(idx)), "a rate of 0 drops nothing"
    model.get_submodule(place).p = 0.5
    assert not torch.equal(model(idx), model(idx))
    model.eval()
    assert torch.equal(model(idx), model(idx))
    configured = GPT(GPTConfig(11, 8, 2, 2, 8, dropout=0.3))
    assert [m.p for m in configured.modules() if isinstance(m, torch.nn.Dropout)] == [0.3] * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_dropout_drops_positions(dtype: torch.dtype) -> None:
    """All positions look alike and hold one number each, so that the sum shows which ones were looked at.

    Both kinds of attention, torch's and the one written out: of t + 1 positions, each counts for 1 / (t + 1), or for
    0 or twice as much under a dropout of one half.
    """
    torch.manual_seed(0)
    T = 16
    attention = CausalSelfAttention(GPTConfig(5, T, 1, 1, T, dropout=0.5), 0)
    attention.resid_dropout.p = 0.0
    zero, one = torch.zeros(T, T), torch.eye(T)
    attention.c_attn.weight.data = torch.cat([zero, zero, one])
    attention.c_proj.weight.data, attention.c_proj.bias.data = one, torch.zeros(T)
    positions = torch.eye(T).expand(50, T, T)  # position t is 1 in place t, so what comes out are weights
    share = (1 / torch.arange(1, T + 1))[:, None].expand(T, T).tril()
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        torch.testing.assert_close(attention.eval()(positions)[0].float(), share, rtol=0.01, atol=0)
        dropped = attention.train()(positions).float() / share.clamp(min=1e-9)
    past = dropped[:, share > 0]
    assert torch.equal((past > 1).int() * 2, past.round().int()), "0 or twice the share"
    assert (past > 1).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (dropped[:, share == 0] == 0).all()


def test_initial_weights_are_distributed_as_in_gpt_2() -> None:
    """Normal(0, 0.02), what writes to the residual stream narrower by the root of its layers; biases 0, norms 1."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(100, 100, 8, 2, 64))
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert (p == 0).all(), name
        elif "ln_" in name:
            assert (p == 1).all(), name
        else:
            expected = 0.02 / 4 if name.endswith("c_proj.weight") else 0.02  # 2 * 8 sums into the stream
            assert p.std().item() == pytest.approx(expected, rel=0.05), name
            assert abs(p.mean().item()) < 0.1 * expected, name


def test_every_weight_gets_a_gradient(model: GPT) -> None:
    model(torch.arange(8)[None]).square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.any(), name


def test_the_cache_has_the_models_dtype_and_device() -> None:
    model = random_model(GPTConfig(11, 8, 2, 2, 8)).double()
    assert {KVCache(model, 3).keys.dtype, KVCache(model, 3).values.dtype} == {torch.float64}
    assert KVCache(model.to("meta"), 1).values.is_meta


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_head": 3}, "n_embd=8 is not a multiple of n_head=3"),
        *[({name: 0}, f"{name} is 0; it must be a whole number of at least 1") for name in SIZES],
        ({"n_embd": 8.0}, "n_embd is 8.0; it must be a whole number of at least 1"),
        ({"n_layer": True}, "n_layer is True; it must be a whole number of at least 1"),
        *[({"dropout": p}, f"dropout is {p}; it must be a number in [0, 1)") for p in (1, -0.1, 1.0, True, math.nan)],
        ({"activation": "tanh"}, "activation is 'tanh'; it must be one of gelu, relu"),
        ({"attention_scale": ""}, "attention_scale is ''; it must be one of head, embedding"),
    ],
)
def test_invalid_architectures_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ChargptError) as error:
        GPTConfig(**(SIZES | change))
    assert str(error.value) == message


@pytest.mark.parametrize(("config", "T"), [(GPTConfig(1, 1, 1, 1, 1, dropout=0), 1), (GPTConfig(7, 8, 2, 2, 8), 5)])
def test_logits_have_a_value_for_each_character(config: GPTConfig, T: int) -> None:
    logits = random_model(config)(torch.zeros(2, T, dtype=torch.int64))
    assert (logits.shape, logits.dtype) == ((2, T, config.vocab_size), torch.float32)
