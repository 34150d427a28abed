"""The model card: README.md of a Hugging Face directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from chargpt.model.file import ModelFile
from chargpt.templates import render

MAX_SHOWN = 500  # characters of the vocabulary


def model_card(model: ModelFile, metrics: Mapping[str, float], stored_width: int) -> str:
    """The text of the card: what the model is, how good it is, how it was trained, and how to load it.

    metrics: the model's metrics; left out of the card if empty, as the parameters of the training are.
    stored_width: width of the layers in the exported files; it may be larger than n_embd.
    """
    c, vocab = model.config, model.vocab
    shown = "".join(vocab.itos[:MAX_SHOWN]) + ("..." if len(vocab) > MAX_SHOWN else "")
    quoted = json.dumps(shown, ensure_ascii=False)
    return render(
        Path(__file__).with_name("card.md.j2"),
        config=c,
        characters="".join(c if c.isprintable() and c != "`" else code(c)[1:-1] for c in quoted),
        first=json.dumps(vocab.itos[0]),
        half=max(1, c.block_size // 2),  # a text in transformers cannot be longer than the context
        wider=stored_width - c.n_embd,
        architecture=asdict(c) | {"parameters": c.parameters},
        metrics=metrics,
        params=model.params,
        code=code,
    )


def code(value: object) -> str:
    """A value as JSON that cannot end the code span or the table cell around it."""
    return json.dumps(value).replace("`", r"\u0060").replace("|", r"\u007c")
