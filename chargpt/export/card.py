"""The model card: README.md of a Hugging Face directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import yaml

from chargpt.model.file import ModelFile

MAX_SHOWN = 500  # characters of the vocabulary
FRONT_MATTER = {"library_name": "transformers", "pipeline_tag": "text-generation"}  # read by the Hugging Face Hub


def model_card(model: ModelFile, params: Mapping[str, Any], metrics: Mapping[str, float], stored_width: int) -> str:
    """The text of the card: what the model is, how good it is, how it was trained, and how to load it.

    params: what the model was trained with. metrics: its metrics. Empty ones are left out of the card.
    stored_width: width of the layers in the exported files; it may be larger than n_embd.
    """
    c, vocab = model.config, model.vocab
    shown = "".join(vocab.itos[:MAX_SHOWN]) + ("..." if len(vocab) > MAX_SHOWN else "")
    characters = "".join(
        c if c.isprintable() and c != "`" else _code(c)[1:-1] for c in json.dumps(shown, ensure_ascii=False)
    )
    # in transformers, a text cannot be longer than the context; chargpt has no such limit
    half = max(1, c.block_size // 2)
    wider = stored_width - c.n_embd
    note = (
        f" It is stored {wider} units wider, to hold the bias of the output layer, which GPT-2 does not have."
        if wider
        else ""
    )
    sections = [
        f"---\n{yaml.safe_dump(FRONT_MATTER)}---\n",
        "# A character-level GPT\n\nMade with chargpt. Each token is one character. The model knows"
        f" {len(vocab)} characters, and a text may hold no others:\n\n```\n{characters}\n```\n",
        "## Load it\n\n```python\nfrom transformers import pipeline\n\n"
        'generate = pipeline("text-generation", model="PATH OF THIS DIRECTORY")\n'
        f"print(generate({json.dumps(vocab.itos[0])}, max_new_tokens={half}, do_sample=True)[0]"
        '["generated_text"])\n```\n\n'
        f"The prompt and the new characters together may be {c.block_size} characters long, its context.{note}\n",
        "## Architecture\n\n" + _table("of the original", asdict(c) | {"parameters": c.parameters}),
    ]
    if metrics:
        sections.append(
            "## Metrics\n\nMeasured on text that the model was not trained on.\n\n" + _table("metric", metrics)
        )
    if params:
        sections.append("## Trained with\n\n" + _table("parameter", params))
    return "\n".join(sections)


def _table(head: str, rows: Mapping[str, Any]) -> str:
    lines = [f"| `{_code(name)[1:-1]}` | `{_code(value)}` |" for name, value in rows.items()]
    return "\n".join([f"| {head} | value |", "| --- | --- |", *lines]) + "\n"


def _code(value: object) -> str:
    """A value as JSON that cannot end the code span or the table cell around it."""
    return json.dumps(value).replace("`", r"\u0060").replace("|", r"\u007c")
