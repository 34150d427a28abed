"""Export a model as a Hugging Face directory, which `transformers` loads as GPT-2 without code of chargpt."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chargpt.errors import ChargptError
from chargpt.export.card import model_card
from chargpt.export.layout import gpt2_layout
from chargpt.files import TEMPORARY, remove_leftovers, write_json, write_text
from chargpt.model import GPT
from chargpt.tensors import write_tensors
from chargpt.vocab import Vocab

FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}


def export(
    model: GPT,
    vocab: Vocab,
    output: str | Path,
    params: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Write config.json, model.safetensors, the tokenizer and a model card (README.md) into the directory `output`.

    params: what the model was trained with. metrics: its metrics. Both appear on the model card only.
    A new directory appears complete. An earlier export is overwritten file by file. No file is removed. The same
    arguments give the same bytes. Raises ChargptError if `output` holds anything but an earlier export, or if a weight
    in GPT-2's layout is not finite.
    """
    output = Path(output)
    if output.exists() and not (output.is_dir() and _names(output) in (set(), FILES, FILES - {"README.md"})):
        raise ChargptError(f"{output}: holds files that are not an earlier export; choose another directory")
    tensors, config = gpt2_layout(model)
    for tensor_name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ChargptError(
                f"{output}: not written: in GPT-2's layout {tensor_name} holds nan or infinite values;"
                " export another model"
            )
    output.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output.parent)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=output.parent) as name:  # complete, or absent
        folder = Path(name) / "hf"
        folder.mkdir()
        write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
        write_json(folder / "config.json", config)
        write_json(folder / "tokenizer.json", tokenizer(vocab))
        write_json(
            folder / "tokenizer_config.json",
            {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False},
        )
        write_text(folder / "README.md", model_card(model, vocab, params or {}, metrics or {}, config["n_embd"]))
        if output.exists() and any(output.iterdir()):
            for file in sorted(FILES):
                os.replace(folder / file, output / file)
        else:
            os.replace(folder, os.path.realpath(output))


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def tokenizer(vocab: Vocab) -> dict[str, Any]:
    """The content of tokenizer.json: each character is a token.

    A character outside the vocabulary is an error in transformers too.
    """
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
