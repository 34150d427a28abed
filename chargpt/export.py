"""A model as a Hugging Face directory, which `transformers` loads as GPT-2 without any code of ours.

GPT-2 differs from our model in three ways, and each folds into weights exactly: its linear layers are stored
transposed, its attention scale is always that of the head, and its output head has no bias.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chargpt.errors import ChargptError
from chargpt.files import TEMPORARY, remove_leftovers, write_json, write_tensors, write_text
from chargpt.model import GPT, GPTConfig
from chargpt.vocab import Vocab

MAX_SHOWN = 500  # characters of the vocabulary in the model card
LAYER_NORM_EPS = 1e-5
FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}


def export(
    model: GPT,
    vocab: Vocab,
    output: str | Path,
    params: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Write config.json, model.safetensors, the tokenizer and a model card (README.md) into the directory `output`.

    params: what the model was trained with; metrics: its figures; both for the card only.
    A new directory appears whole; an earlier export is overwritten, file by file; nothing is ever removed.
    The same model gives the same bytes.
    Raises ChargptError if `output` holds anything else.
    """
    output = Path(output)
    if output.exists() and not (output.is_dir() and _names(output) in (set(), FILES, FILES - {"README.md"})):
        raise ChargptError(f"{output}: holds something else than an earlier export; choose another directory")
    tensors, config = gpt2_layout(model)
    for tensor_name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ChargptError(f"{output}: not written: in GPT-2's layout {tensor_name} holds nan or infinite values")
    output.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output.parent)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=output.parent) as name:  # all of it, or nothing
        folder = Path(name) / "hf"
        folder.mkdir()
        write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
        write_json(folder / "config.json", config)
        write_json(folder / "tokenizer.json", tokenizer(vocab))
        write_json(
            folder / "tokenizer_config.json",
            {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False},
        )
        write_text(folder / "README.md", model_card(model, vocab, params or {}, metrics or {}))
        if output.exists() and any(output.iterdir()):
            for file in sorted(FILES):
                os.replace(folder / file, output / file)
        else:
            os.replace(folder, os.path.realpath(output))


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def gpt2_layout(model: GPT) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights (float32) under GPT-2's names and shapes, and the config.json that goes with them."""
    c = model.config
    weights = {name: t.detach().cpu().double() for name, t in model.state_dict().items()}
    head_bias = weights.pop("lm_head.bias")
    # The head's bias b, moved into the final LayerNorm's: W (x + d) = W x + b, where W d = b has a solution.
    shift = torch.linalg.lstsq(weights["lm_head.weight"], head_bias[:, None], driver="gelsd").solution[:, 0]
    shift = shift.float().double()  # as it will be stored; a huge one would drown what it is added to
    extra = 0
    if shift.abs().max() < 100 and torch.allclose(weights["lm_head.weight"] @ shift, head_bias, rtol=0, atol=1e-5):
        weights["ln_f.bias"] += shift
    else:
        extra = c.n_head
        weights = _widen(weights, head_bias, c)
    width, head_size = c.n_embd + extra, (c.n_embd + extra) // c.n_head
    tensors = {}
    for name, tensor in weights.items():
        if name.endswith("attn.c_attn.weight"):
            tensor[:width] *= c.scale * math.sqrt(head_size)  # GPT-2 will divide by sqrt(head_size)
            tensors[f"transformer.{name[:-6]}bias"] = torch.zeros(3 * width)
        if ".c_" in name and tensor.dim() == 2:
            tensor = tensor.T
        tensors[name if name.startswith("lm_head") else f"transformer.{name}"] = tensor.float().contiguous()
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": c.vocab_size,
        "n_positions": c.block_size,
        "n_embd": width,
        "n_layer": c.n_layer,
        "n_head": c.n_head,
        "n_inner": 4 * c.n_embd,
        "activation_function": c.activation,
        "resid_pdrop": c.dropout,
        "embd_pdrop": c.dropout,
        "attn_pdrop": c.dropout,
        "layer_norm_epsilon": LAYER_NORM_EPS * c.n_embd / width,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "float32",
    }
    return tensors, config


def model_card(model: GPT, vocab: Vocab, params: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """The export's README.md: what the model is, how good, how it was trained, how to load it."""
    c = model.config

    def table(head: str, rows: Mapping[str, Any]) -> str:
        lines = [f"| `{_code(name)[1:-1]}` | `{_code(value)}` |" for name, value in rows.items()]
        return "\n".join([f"| {head} | value |", "| --- | --- |", *lines]) + "\n"

    shown = "".join(vocab.itos[:MAX_SHOWN]) + ("..." if len(vocab) > MAX_SHOWN else "")
    characters = "".join(
        c if c.isprintable() and c != "`" else _code(c)[1:-1] for c in json.dumps(shown, ensure_ascii=False)
    )
    # in transformers, unlike here, generation ends with the context
    half = max(1, c.block_size // 2)
    wider = gpt2_layout(model)[1]["n_embd"] - c.n_embd
    note = f" It is stored {wider} units wider, which hold the head's bias; GPT-2 has none." if wider else ""
    sections = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n",
        "# A character-level GPT\n\nMade with chargpt. Each token is one character; a text may only hold the"
        f" {len(vocab)} that the model knows:\n\n```\n{characters}\n```\n",
        "## Load it\n\n```python\nfrom transformers import pipeline\n\n"
        'generate = pipeline("text-generation", model="PATH OF THIS DIRECTORY")\n'
        f"print(generate({json.dumps(vocab.itos[0])}, max_new_tokens={half}, do_sample=True)[0]"
        '["generated_text"])\n```\n\n'
        f"The prompt and the new characters together may be {c.block_size} characters long, its context.{note}\n",
        "## Architecture\n\n"
        + table("of the original", asdict(c) | {"parameters": sum(p.numel() for p in model.parameters())}),
    ]
    if metrics:
        sections.append("## Metrics\n\nOn text it was not trained on.\n\n" + table("metric", metrics))
    if params:
        sections.append("## Trained with\n\n" + table("parameter", params))
    return "\n".join(sections)


def _code(value: object) -> str:
    """JSON that ends neither the code span nor the table's cell in which it stands."""
    return json.dumps(value).replace("`", r"\u0060").replace("|", r"\u007c")


def tokenizer(vocab: Vocab) -> dict[str, Any]:
    """tokenizer.json: each character is a token; a character outside the vocabulary is an error there too."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": {c: i for i, c in enumerate(vocab.itos)}, "unk_token": "[UNK]"},
    }


def _widen(weights: dict[str, Tensor], head_bias: Tensor, c: GPTConfig) -> dict[str, Tensor]:
    """The same function with one more unit per head; the first carries a constant 1 into the head, times its bias.

    For a vocabulary larger than the width, where no shift of the final LayerNorm can stand for every bias.
    LayerNorm subtracts the mean, so all that is written to the residual stream may have its mean removed;
    units that are always zero then only shrink the variance by n_embd / width, which weights and eps make up for.
    """
    C, nh, hs = c.n_embd, c.n_head, c.n_embd // c.n_head
    width = C + nh

    def per_head(matrix: Tensor) -> Tensor:
        """(groups * C, n) -> (groups * width, n): a zero row after each head's."""
        heads = matrix.reshape(-1, hs, matrix.size(1))
        return torch.cat([heads, heads.new_zeros(heads.size(0), 1, heads.size(2))], 1).flatten(0, 1)

    def pad(tensor: Tensor, dim: int = -1) -> Tensor:
        """Zeros for the new units along a dimension of the residual stream."""
        zeros = list(tensor.shape)
        zeros[dim] = nh
        return torch.cat([tensor, tensor.new_zeros(zeros)], dim)

    wide = {}
    for name, t in weights.items():
        if name in ("wte.weight", "wpe.weight"):
            t = pad(t - t.mean(1, keepdim=True))
        elif "ln_" in name:
            t = pad(t * math.sqrt(C / width)) if name.endswith("weight") else pad(t)
        elif name.endswith("c_attn.weight"):
            t = per_head(pad(t))
        elif name.endswith("c_fc.weight") or name == "lm_head.weight":
            t = pad(t)
        elif name.endswith("c_proj.weight"):
            t = pad(t - t.mean(0), 0)
            t = per_head(t.T).T if ".attn." in name else t
        elif name.endswith("c_proj.bias"):
            t = pad(t - t.mean())
        wide[name] = t
    wide["ln_f.bias"][C] = 1
    wide["lm_head.weight"][:, C] = head_bias
    return wide
