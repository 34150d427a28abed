"""The model: GPT-2's decoder with the output layer of the legacy scripts, and its key/value cache.

Sources: Radford et al. 2019 (GPT-2) for the blocks; openai/gpt-2 and karpathy/nanoGPT for the names.
Shapes in comments: B batch, T positions, C n_embd, nh n_head, hs head size, V vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from chargpt.errors import ChargptError
from chargpt.model.config import GPTConfig


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which each position sees itself and the positions before it."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)  # queries, keys, values
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.config = config
        self.layer = layer

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """x and the result: (B, T, C). With a cache, x follows the cached positions, and its own are added."""
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.config.n_head, C // self.config.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # three of (B, nh, T, hs)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        y = causal_attention(q, k, v, self.config.dropout if self.training else 0.0, self.config.scale)
        y = y.transpose(1, 2).reshape(B, T, C)  # heads side by side again
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    """The feed-forward layer; its hidden layer is four times as wide as the model."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.act = nn.GELU() if config.activation == "gelu" else nn.ReLU()
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x and the result: (B, T, C)."""
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))


class Block(nn.Module):
    """Attention, then feed-forward. Each reads a normalised copy of the residual stream and adds its result to it."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """x and the result: (B, T, C). cache: as for `CausalSelfAttention`."""
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """The model: computes the logits of the next character from the ids of characters."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        # from_pretrained skips Embedding's own initialisation, which is slow to load on the meta device
        self.wte = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.n_embd), freeze=False)
        self.wpe = nn.Embedding.from_pretrained(torch.empty(config.block_size, config.n_embd), freeze=False)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size)
        if not self.wte.weight.is_meta:
            self.init_weights()

    def init_weights(self) -> None:
        """Draw matrices and embeddings from Normal(0, 0.02), and set biases to zero. Source: GPT-2.

        Matrices that write to the residual stream get the smaller standard deviation 0.02 / sqrt(2 n_layer).
        """
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.dim() == 2:
                residual = name.endswith("c_proj.weight")
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02)

    @classmethod
    def from_arrays(cls, config: GPTConfig, weights: Mapping[str, NDArray[np.float32]]) -> GPT:
        """A model with these weights, which are not copied. Their names and shapes: `config.shapes()`."""
        with torch.device("meta"):  # no memory and no initial values
            model = cls(config)
        model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()}, assign=True)
        return model

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """The current weights by name; they share memory with the model's if those are on the CPU."""
        return {name: t.detach().cpu().float().contiguous().numpy() for name, t in self.state_dict().items()}

    def forward(self, idx: Tensor, cache: KVCache | None = None) -> Tensor:
        """The logits of the next character at each position.

        idx: (B, T) int64 in [0, vocab_size). cache: the positions before idx; those of idx are added to it.
        Returns (B, T, vocab_size) float32. Raises ChargptError if cached and new positions exceed block_size.
        """
        start = 0 if cache is None else cache.length
        end = start + idx.size(1)
        if end > self.config.block_size:
            raise ChargptError(f"{end} positions do not fit into block_size={self.config.block_size}; pass fewer")
        x = self.drop(self.wte(idx) + self.wpe.weight[start:end])
        for block in self.h:
            x = block(x, cache)
        if cache is not None:
            cache.length = end
        return self.lm_head(self.ln_f(x)).float()


PLAIN_ATTENTION_LENGTH = 256  # positions; for more, torch's fused kernel is used


def causal_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float, scale: float) -> Tensor:
    """Attention of the last T of S positions to themselves and those before. q: (B, nh, T, hs); k, v: (B, nh, S, hs).

    dropout: probability in [0, 1). scale: factor on the attention scores. Returns (B, nh, T, hs).
    """
    T, S = q.size(2), k.size(2)
    if T == S <= PLAIN_ATTENTION_LENGTH and q.dtype == torch.bfloat16 and q.device.type == "cpu":
        return plain_attention(q, k, v, dropout, scale)
    mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T) if 1 < T < S else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=T == S, scale=scale)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float, scale: float) -> Tensor:
    """Like `causal_attention` with T = S, written out as matrix products.

    On a CPU in bfloat16, torch's fused kernel does not use AMX or AVX-512 BF16. Up to PLAIN_ATTENTION_LENGTH positions,
    this function is up to twice as fast. It needs memory for T x T weights, which the fused kernel does not need.
    """
    B, nh, T, hs = q.shape
    q, k, v = (t.reshape(B * nh, T, hs) for t in (q, k, v))
    future = torch.full((T, T), -math.inf, dtype=q.dtype, device=q.device).triu(1)
    with torch.autocast(q.device.type, enabled=False):  # autocast would compute the softmax in float32
        weights = torch.baddbmm(future.expand(B * nh, T, T), q, k.mT, alpha=scale).softmax(-1)
        return (F.dropout(weights, dropout) @ v).view(B, nh, T, hs)


class KVCache:
    """Keys and values of the positions that a model has already read, to generate one character at a time.

    `keys` and `values`: (n_layer, B, nh, block_size, hs), allocated once. The first `length` positions are filled.
    """

    def __init__(self, model: GPT, batch_size: int) -> None:
        c = model.config
        shape = (c.n_layer, batch_size, c.n_head, c.block_size, c.n_embd // c.n_head)
        self.keys = model.wte.weight.new_zeros(shape)
        self.values = torch.zeros_like(self.keys)
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v of T new positions, (B, nh, T, hs); return those of all positions, (B, nh, length + T, hs)."""
        end = self.length + k.size(2)
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
