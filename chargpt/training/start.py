"""The model that training starts from: a new one, or one that continues a model file, perhaps with another text."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from chargpt.errors import ChargptError
from chargpt.evaluation.loss import evaluate
from chargpt.model.config import GPTConfig
from chargpt.model.file import ModelFile
from chargpt.model.gpt import GPT
from chargpt.text.documents import Documents
from chargpt.text.tokens import Split
from chargpt.text.vocab import Vocab

if TYPE_CHECKING:
    from chargpt.params import Params

BEGINNING = 8192  # characters of a text that show how foreign it is


def new_model(params: Params, vocab_size: int) -> GPT:
    """A new model with the architecture in params.yaml. The same seed gives the same initial weights."""
    torch.manual_seed(params.seed)
    return GPT(
        GPTConfig(vocab_size, params.block_size, params.n_layer, params.n_head, params.n_embd, dropout=params.dropout)
    )


def continued_model(source: ModelFile, params: Params, vocab: Vocab) -> GPT:
    """A model for another text that computes what the model in a file computes, as far as both know its characters.

    The rows of embedding and output layer are matched by character. A character that the file lacks starts at the mean
    of the known ones, with the smallest of their output biases, as if it was rare. A longer context repeats the
    position embeddings of the second half of the file's context; a shorter one uses the first ones. Activation and
    attention scale are those of the file; dropout is that of params.yaml.
    Raises ChargptError if another size differs from params.yaml; the message lists every such size.
    """
    names = ("n_layer", "n_head", "n_embd")
    ours, theirs = ({name: getattr(sizes, name) for name in names} for sizes in (params, source.config))
    if different := [name for name in names if ours[name] != theirs[name]]:
        table = "; ".join(f"{name} is {ours[name]}, its model has {theirs[name]}" for name in different)
        switches = " ".join(f"-S {name}={theirs[name]}" for name in different)
        raise ChargptError(f"params.yaml does not fit init={params.init}: {table}; use {switches}")
    weights = dict(source.weights)
    rows = match(vocab, source.vocab)
    known = rows[rows >= 0] if rows.max() >= 0 else np.arange(len(source.vocab))
    for name in ("wte.weight", "lm_head.weight", "lm_head.bias"):
        among = weights[name][known]
        other = among.min() if name.endswith("bias") else among.mean(0)
        weights[name] = np.where(rows.reshape(-1, *[1] * (among.ndim - 1)) >= 0, weights[name][rows], other)
    had = source.config.block_size
    late = np.arange(params.block_size) - had // 2
    weights["wpe.weight"] = weights["wpe.weight"][np.where(late < 0, late, late % (had - had // 2)) + had // 2]
    config = replace(source.config, vocab_size=len(vocab), block_size=params.block_size, dropout=params.dropout)
    model = GPT(config)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return model


def surprise(source: ModelFile, params: Params, vocab: Vocab, ids: Split) -> float:
    """How foreign a text is to the model in a file: bits per character of its beginning, before any training.

    ids: N >= 2, by `vocab`.
    """
    sizes = {name: getattr(source.config, name) for name in ("n_layer", "n_head", "n_embd", "block_size")}
    model = continued_model(source, params.model_copy(update=sizes | {"dropout": 0.0}), vocab)
    return evaluate(model, (ids.ids if isinstance(ids, Documents) else ids)[:BEGINNING]) / math.log(2)


def match(vocab: Vocab, known: Vocab) -> NDArray[np.int64]:
    """For each character of `vocab`, its id in `known`, or -1; (len(vocab),) int64."""
    ids = {character: i for i, character in enumerate(known.itos)}
    return np.array([ids.get(character, -1) for character in vocab.itos])
