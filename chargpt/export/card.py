"""The model card: README.md of a Hugging Face directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import yaml

from chargpt.model import GPT
from chargpt.vocab import Vocab

MAX_SHOWN = 500  # characters of the vocabulary
FRONT_MATTER = {"library_name": "transformers", "pipeline_tag": "text-generation"}  # what the Hub reads


def model_card(
    model: GPT, vocab: Vocab, params: Mapping[str, Any], metrics: Mapping[str, float], stored_width: int
) -> str:
    """The export's README.md: what the model is, how good, how it was trained, how to load it.

    stored_width: width of the layers in the directory, which may be larger than n_embd.
    """
    c = model.config
    shown = "".join(vocab.itos[:MAX_SHOWN]) + ("..." if len(vocab) > MAX_SHOWN else "")
    characters = "".join(
        c if c.isprintable() and c != "`" else _code(c)[1:-1] for c in json.dumps(shown, ensure_ascii=False)
    )
    # in transformers, unlike here, generation ends with the context
    half = max(1, c.block_size // 2)
    wider = stored_width - c.n_embd
    note = f" It is stored {wider} units wider, which hold the head's bias; GPT-2 has none." if wider else ""
    sections = [
        f"---\n{yaml.safe_dump(FRONT_MATTER)}---\n",
        "# A character-level GPT\n\nMade with chargpt. Each token is one character; a text may only hold the"
        f" {len(vocab)} that the model knows:\n\n```\n{characters}\n```\n",
        "## Load it\n\n```python\nfrom transformers import pipeline\n\n"
        'generate = pipeline("text-generation", model="PATH OF THIS DIRECTORY")\n'
        f"print(generate({json.dumps(vocab.itos[0])}, max_new_tokens={half}, do_sample=True)[0]"
        '["generated_text"])\n```\n\n'
        f"The prompt and the new characters together may be {c.block_size} characters long, its context.{note}\n",
        "## Architecture\n\n"
        + _table("of the original", asdict(c) | {"parameters": sum(p.numel() for p in model.parameters())}),
    ]
    if metrics:
        sections.append("## Metrics\n\nOn text it was not trained on.\n\n" + _table("metric", metrics))
    if params:
        sections.append("## Trained with\n\n" + _table("parameter", params))
    return "\n".join(sections)


def _table(head: str, rows: Mapping[str, Any]) -> str:
    lines = [f"| `{_code(name)[1:-1]}` | `{_code(value)}` |" for name, value in rows.items()]
    return "\n".join([f"| {head} | value |", "| --- | --- |", *lines]) + "\n"


def _code(value: object) -> str:
    """JSON that ends neither the code span nor the table's cell in which it stands."""
    return json.dumps(value).replace("`", r"\u0060").replace("|", r"\u007c")
