"""Export a model as a Hugging Face directory, which `transformers` loads as GPT-2 without code of chargpt."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chargpt.errors import ChargptError
from chargpt.export.card import model_card
from chargpt.export.layout import Floats, gpt2_layout, special_tokens
from chargpt.files import temporary_directory, write_json, write_text
from chargpt.model.file import ModelFile
from chargpt.tensors import write_tensors
from chargpt.text.vocab import Vocab

VLLM_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # units; cpu_attn.py of vLLM 0.32
ONNX = "onnx/model.onnx"  # where transformers.js looks for it
NEEDED = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
FILES = NEEDED | {ONNX, "README.md", "generation_config.json"}


def export(model: ModelFile, output: str | Path, metrics: Mapping[str, float] | None = None) -> str:
    """Write config.json, model.safetensors, the tokenizer and a model card (README.md) into the directory `output`.

    For transformers.js, the directory also holds the model as an ONNX graph, if its weights fit into one (2 GiB) and
    the package onnx is installed.

    metrics: the model's metrics, for the model card.
    Returns a remark for the user if the graph is missing or vLLM cannot run the model, otherwise an empty string.
    A new directory appears complete. An earlier export is overwritten file by file. No file is removed. The same
    arguments give the same bytes. Raises ChargptError if `output` holds anything but an earlier export, or if a weight
    in GPT-2's layout is not finite.
    """
    output = Path(output)
    if output.exists() and not (output.is_dir() and (not _names(output) or NEEDED <= _names(output) <= FILES)):
        raise ChargptError(f"{output}: is neither an earlier export nor an empty directory; choose another name")
    special = special_tokens(model.vocab)
    tensors, config = gpt2_layout(model, output, len(special))
    with temporary_directory(output.parent) as folder:  # complete, or absent
        write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
        write_json(folder / "config.json", config)
        write_json(folder / "tokenizer.json", tokenizer(model.vocab))
        # CTranslate2 needs names for these three
        about: dict[str, Any] = dict(zip(("unk_token", "bos_token", "eos_token"), special, strict=True))
        about |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        # without token_type_ids, which GPT-2 would add to the embeddings; padding on the left, so that every prompt of
        # a batch is continued where it ends
        about |= {"model_input_names": ["input_ids", "attention_mask"], "model_max_length": config["n_positions"]}
        write_json(folder / "tokenizer_config.json", about | {"pad_token": special[2], "padding_side": "left"})
        # no more characters than there are positions, whatever a pipeline's default is
        sampling = {"do_sample": True, "temperature": 0.8, "max_length": config["n_positions"]}
        write_json(folder / "generation_config.json", sampling | {"pad_token_id": len(model.vocab) + 2})
        write_text(folder / "README.md", model_card(model, metrics or {}, config["n_embd"]))
        remarks = [] if _write_onnx(tensors, config, folder) else ["without onnx, the directory has no ONNX graph"]
        if output.exists() and any(output.iterdir()):
            (output / ONNX).parent.mkdir(exist_ok=True)
            (output / ONNX).unlink(missing_ok=True)  # the new model may be too large for one
            for file in sorted(_names(folder)):
                os.replace(folder / file, output / file)
        else:
            os.replace(folder, os.path.realpath(output))
    head_size = config["n_embd"] // model.config.n_head
    if head_size not in VLLM_HEADS:
        allowed = ", ".join(map(str, VLLM_HEADS))
        remarks += [f"vLLM cannot run this model: its heads are stored with {head_size} units; vLLM takes {allowed}"]
    return "; ".join(remarks)


def _write_onnx(tensors: Mapping[str, Floats], config: Mapping[str, Any], folder: Path) -> bool:
    """Write the ONNX graph, if its weights fit into one. Returns False if the package onnx is not installed."""
    try:
        from chargpt.export.onnx import fits, gpt2_graph, write_onnx
    except ModuleNotFoundError:
        return False
    if fits(tensors):
        write_onnx(gpt2_graph(tensors, config), folder / ONNX)
    return True


def _names(folder: Path) -> set[str]:
    """All files and links below a directory, without hidden ones and those in hidden directories."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return {path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)}


def tokenizer(vocab: Vocab) -> dict[str, Any]:
    """The content of tokenizer.json: each character is a token, and the special tokens follow.

    A character outside the vocabulary is an error in transformers too: the unknown token is no entry of `vocab`.
    """
    special = special_tokens(vocab)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": len(vocab) + i, "content": name, **flags} for i, name in enumerate(special)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": {c: i for i, c in enumerate(vocab.itos)}, "unk_token": special[0]},
    }
