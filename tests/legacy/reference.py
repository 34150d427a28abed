"""The legacy model's arithmetic, written from its description: an independent reference for migration.

Parameter names are those of the legacy files, so `state_dict` is what the legacy system saved.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from chargpt.legacy.values import Array


class Head(nn.Module):
    def __init__(self, n_embd: int, head_size: int, scale: float) -> None:
        super().__init__()
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2) * self.scale  # (B, T, T)
        future = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
        return scores.masked_fill(future, -torch.inf).softmax(-1) @ self.value(x)


class MultiHead(nn.Module):
    def __init__(self, n_embd: int, n_head: int, scale: float) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(n_embd, n_embd // n_head, scale) for _ in range(n_head))
        self.proj = nn.Linear(n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(torch.cat([head(x) for head in self.heads], dim=-1))


class FeedForward(nn.Module):
    def __init__(self, n_embd: int, activation: str) -> None:
        super().__init__()
        act = nn.ReLU() if activation == "relu" else nn.GELU()
        self.net = nn.Sequential(nn.Linear(n_embd, 4 * n_embd), act, nn.Linear(4 * n_embd, n_embd))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class LegacyBlock(nn.Module):
    def __init__(self, n_embd: int, n_head: int, activation: str, scale: float) -> None:
        super().__init__()
        self.sa = MultiHead(n_embd, n_head, scale)
        self.ffwd = FeedForward(n_embd, activation)
        self.ln1 = nn.LayerNorm(n_embd)
        self.ln2 = nn.LayerNorm(n_embd)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.sa(self.ln1(x))
        return x + self.ffwd(self.ln2(x))


class LegacyModel(nn.Module):
    """dialect: `relu-embedding` and the like, as `chargpt.legacy.dialect.DIALECTS`."""

    def __init__(self, V: int, T: int, C: int, n_head: int, n_layer: int, dialect: str) -> None:
        super().__init__()
        activation, scale_by = dialect.split("-")
        scale = (C if scale_by == "embedding" else C // n_head) ** -0.5
        self.token_embedding_table = nn.Embedding(V, C)
        self.position_embedding_table = nn.Embedding(T, C)
        self.blocks = nn.Sequential(*(LegacyBlock(C, n_head, activation, scale) for _ in range(n_layer)))
        self.ln_f = nn.LayerNorm(C)
        self.lm_head = nn.Linear(C, V)
        self.block_size = T

    def forward(self, idx: Tensor) -> Tensor:
        x = self.token_embedding_table(idx) + self.position_embedding_table.weight[: idx.size(1)]
        return self.lm_head(self.ln_f(self.blocks(x)))

    @torch.no_grad()
    def greedy(self, idx: Tensor, max_tokens: int) -> Tensor:
        """The legacy loop: everything recomputed for each character, the context cropped to block_size."""
        for _ in range(max_tokens):
            logits = self(idx[:, -self.block_size :])[:, -1]
            idx = torch.cat([idx, logits.argmax(-1, keepdim=True)], dim=1)
        return idx


def write_legacy(weights_dir: str | Path, tensors: dict[str, Array]) -> None:
    """Write named float32 arrays as the legacy system did."""
    folder = Path(weights_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensor in tensors.items():
        with (folder / f"{name}.txt").open("w", newline="\n") as file:
            file.write(f"# shape: {list(tensor.shape)}\n")
            file.writelines(f"{float(value)}\n" for value in tensor.flat)
