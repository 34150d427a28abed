"""The architecture of a model, and the names and shapes of its weights. Readable without loading torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from chargpt.errors import ChargptError

Activation = Literal["gelu", "relu"]
AttentionScale = Literal["head", "embedding"]
Dialect = Literal["gelu-head", "gelu-embedding", "relu-head", "relu-embedding"]  # activation and attention scale
DIALECTS: tuple[str, ...] = get_args(Dialect)
MAX_LAYERS = 1000  # building a model takes a millisecond per layer


@dataclass(frozen=True)
class GPTConfig:
    """The architecture of a model.

    Raises ChargptError if a size is below 1, `n_embd` is not a multiple of `n_head`, `dropout` is outside
    [0, 1), or `activation` or `attention_scale` is unknown.
    """

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float = 0.0
    activation: Activation = "gelu"
    attention_scale: AttentionScale = "head"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ChargptError(f"{name} is {value!r}; it must be a whole number of at least 1")
        if self.n_embd % self.n_head:
            raise ChargptError(f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}")
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise ChargptError(f"dropout is {self.dropout!r}; it must be a number in [0, 1)")
        for name, choices in (("activation", get_args(Activation)), ("attention_scale", get_args(AttentionScale))):
            if getattr(self, name) not in choices:
                raise ChargptError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}")

    @property
    def scale(self) -> float:
        """The factor on attention scores: head size ** -0.5, or n_embd ** -0.5 as in the oldest legacy releases."""
        width = self.n_embd // self.n_head if self.attention_scale == "head" else self.n_embd
        return width**-0.5

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each weight of the model, by its name in `GPT`."""
        V, T, C = self.vocab_size, self.block_size, self.n_embd
        block = {
            "ln_1.weight": (C,),
            "ln_1.bias": (C,),
            "attn.c_attn.weight": (3 * C, C),
            "attn.c_proj.weight": (C, C),
            "attn.c_proj.bias": (C,),
            "ln_2.weight": (C,),
            "ln_2.bias": (C,),
            "mlp.c_fc.weight": (4 * C, C),
            "mlp.c_fc.bias": (4 * C,),
            "mlp.c_proj.weight": (C, 4 * C),
            "mlp.c_proj.bias": (C,),
        }
        shapes: dict[str, tuple[int, ...]] = {"wte.weight": (V, C), "wpe.weight": (T, C)}
        shapes |= {f"h.{i}.{name}": shape for i in range(self.n_layer) for name, shape in block.items()}
        return shapes | {"ln_f.weight": (C,), "ln_f.bias": (C,), "lm_head.weight": (V, C), "lm_head.bias": (V,)}

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes().values())
