"""Convert the weights of a model to GPT-2's layout.

GPT-2 differs from `GPT` in three ways: its linear layers are stored transposed, its attention scale always follows the
head size, and its output layer has no bias. Changed weights make up for each difference exactly. Programs that run
GPT-2 also expect tokens that are no characters; the model gets some that it never produces.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chargpt.errors import ChargptError
from chargpt.model.config import GPTConfig
from chargpt.model.file import ModelFile
from chargpt.tensors import is_finite
from chargpt.text.vocab import Vocab

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
LAYER_NORM_EPS = 1e-5
IMPOSSIBLE = -1e4  # the logits of tokens that are no characters are below this


def gpt2_layout(model: ModelFile, path: str | Path, more_tokens: int) -> tuple[dict[str, Floats], dict[str, Any]]:
    """The weights (float32) with GPT-2's names and shapes, and the content of the config.json that describes them.

    path: named in errors. more_tokens: added after the characters; their embeddings are zero, and their logits are
    below IMPOSSIBLE. Raises ChargptError if a weight is not finite in this layout.
    """
    c = model.config
    weights = {name: w.astype(np.float64) for name, w in model.weights.items()}
    head_bias = weights.pop("lm_head.bias")
    # Move the output layer's bias b into the bias of the final LayerNorm: if W d = b, then W (x + d) = W x + b.
    # A very large d would drown the values that it is added to.
    solution = np.linalg.lstsq(weights["lm_head.weight"], head_bias, rcond=None)[0]
    shift = solution.astype(np.float32).astype(np.float64)  # rounded to float32, as it will be stored
    extra = 0
    exact = np.allclose(weights["lm_head.weight"] @ shift, head_bias, rtol=0, atol=1e-5)
    if exact and np.abs(shift).max() < 100 and c.vocab_size < c.n_embd:
        weights["ln_f.bias"] += shift
    else:
        extra = max(c.n_head, 2)
        weights = _widen(weights, head_bias, c, extra)
    _add_tokens(weights, more_tokens, c)
    width, head_size = c.n_embd + extra, (c.n_embd + extra) // c.n_head
    tensors = {}
    for name, tensor in weights.items():
        if name.endswith("attn.c_attn.weight"):
            tensor[:width] *= c.scale * math.sqrt(head_size)  # GPT-2 will divide by sqrt(head_size)
            tensors[f"transformer.{name[:-6]}bias"] = np.zeros(3 * width, np.float32)
        if ".c_" in name and tensor.ndim == 2:
            tensor = tensor.T
        with np.errstate(over="ignore"):  # found below
            tensors[name if name == "lm_head.weight" else f"transformer.{name}"] = tensor.astype(np.float32, order="C")
    if names := [name for name, tensor in tensors.items() if not is_finite(tensor)]:
        raise ChargptError(f"{path}: not written: {names[0]} is not finite in GPT-2's layout; export another model")
    return tensors, _config(c, width, c.vocab_size + more_tokens)


def special_tokens(vocab: Vocab) -> list[str]:
    """Names for an unknown, a begin and an end token; each holds a character outside the vocabulary.

    So no text over the vocabulary can be mistaken for one of them.
    """
    private = next(chr(code) for code in range(0xE000, 0x110000) if chr(code) not in vocab.itos)
    names = ("<unk>", "<s>", "</s>")
    return [name if set(name) - set(vocab.itos) else f"{name}{private}" for name in names]


def _config(c: GPTConfig, width: int, vocab_size: int) -> dict[str, Any]:
    """The content of config.json for a GPT-2 whose layers are `width` units wide."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": vocab_size,
        "n_positions": c.block_size,
        "n_embd": width,
        "n_layer": c.n_layer,
        "n_head": c.n_head,
        "n_inner": 4 * c.n_embd,
        "activation_function": c.activation,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), c.dropout),
        "layer_norm_epsilon": LAYER_NORM_EPS * c.n_embd / width,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "float32",
        "transformers.js_config": {"dtype": "fp32"},  # the one ONNX file that there is
    }


def _add_tokens(weights: dict[str, Doubles], count: int, c: GPTConfig) -> None:
    """Add tokens with embeddings of zero and with logits below IMPOSSIBLE; all other logits stay.

    The rows that the output layer gets point in a direction that its other rows do not see. The bias of the final
    LayerNorm is shifted so far in that direction that every output has a part of at least 1 in it.
    """
    head, scale, bias = (weights[name] for name in ("lm_head.weight", "ln_f.weight", "ln_f.bias"))
    vocab_size, width = head.shape
    if width > c.n_embd:
        direction = np.eye(width)[c.n_embd + 1]  # the second new unit is always zero there
    else:
        unseen = np.linalg.qr(head.T, mode="complete").Q[:, vocab_size:]
        # the one of these directions in which the outputs vary least
        direction = unseen @ np.linalg.svd(scale[:, None] * unseen).Vh[-1]
    lowest = direction @ bias - np.linalg.norm(direction * scale) * math.sqrt(width)  # LayerNorm's norm is sqrt(width)
    weights["ln_f.bias"] = bias + (1 - lowest) * direction
    weights["lm_head.weight"] = np.concatenate([head, np.tile(2 * IMPOSSIBLE * direction, (count, 1))])
    weights["wte.weight"] = np.concatenate([weights["wte.weight"], np.zeros((count, width))])


def _widen(weights: dict[str, Doubles], head_bias: Doubles, c: GPTConfig, extra: int) -> dict[str, Doubles]:
    """Add units without changing the function; the first new unit replaces the output layer's bias.

    extra: number of new units, a multiple of n_head and at least 2.
    The first new unit is always 1 after the final LayerNorm, and the output layer multiplies it with the bias.
    LayerNorm subtracts the mean, so the mean may be removed from everything that is written to the residual stream.
    The new units, which are always zero there, then only multiply the variance by n_embd / width. The weights of the
    LayerNorms and their eps make up for that.
    """
    C, hs = c.n_embd, c.n_embd // c.n_head
    end = [C] * extra  # where new units go in the residual stream, and in each of the heads:
    heads = np.repeat(np.arange(hs, 3 * C + 1, hs), extra // c.n_head)
    wide = {}
    for name, t in weights.items():
        written = "c_proj" in name  # to the residual stream; other weights read from it
        if written or name in ("wte.weight", "wpe.weight"):
            t = t - t.mean(0 if written else 1, keepdims=True)
        elif "ln_" in name and name.endswith("weight"):
            t = t * math.sqrt(C / (C + extra))
        if not name.endswith("c_fc.bias"):
            t = np.insert(t, end, 0, axis=0 if written else -1)
        if name.endswith("c_attn.weight"):
            t = np.insert(t, heads, 0, axis=0)
        elif name.endswith("attn.c_proj.weight"):
            t = np.insert(t, heads[:extra], 0, axis=1)
        wide[name] = t
    wide["ln_f.bias"][C] = 1
    wide["lm_head.weight"][:, C] = head_bias
    return wide
