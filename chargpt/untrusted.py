"""Check a model file, which may come from a stranger: compare what the file declares with what it holds.

The declared sizes are compared with the tensors in the file before anything of these sizes is allocated or built.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chargpt.errors import ChargptError, escape
from chargpt.files import unique_keys
from chargpt.model import GPT, GPTConfig
from chargpt.tensors import is_finite, open_tensors, tensor_hash
from chargpt.vocab import Vocab

FORMAT_VERSION = 1
TENSORS_PER_LAYER = 11
MAX_LAYERS = 1000  # the limit of params.yaml too; building a model takes a millisecond per layer
REMEDY = "use a file that chargpt wrote, or fetch it again"


def read_model_file(path: str | Path) -> tuple[GPT, Vocab, dict[str, Tensor]]:
    """Read and check a model file.

    Returns the model without weights (on the meta device), its vocabulary, and its memory-mapped weights by name.
    Raises ChargptError if the file is refused; the message says why.
    """
    with open_tensors(path) as file:
        metadata = parse_metadata(path, file.metadata())
        config, vocab = _parse_config(path, metadata)
        model = _empty_model(path, file, config)
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    claimed = metadata.pop("sha256", None)
    if tensor_hash(weights, metadata) != claimed:
        raise ChargptError(f"{path}: the content does not match its own sha256: damaged in transfer; fetch it again")
    for name, tensor in weights.items():
        if not is_finite(tensor):
            raise ChargptError(
                f"{path}: {name} holds nan or infinite values: the weights of a diverged model; use another model"
            )
    return model, vocab, weights


def parse_metadata(path: str | Path, raw: Mapping[str, str] | None) -> dict[str, Any]:
    """The entries of the metadata key `chargpt`, their format version checked.

    path: the file's name in messages. raw: the file's metadata. Raises ChargptError if they are not a chargpt model's.
    """
    if not raw or "chargpt" not in raw:
        raise ChargptError(
            f"{path}: a safetensors file without the metadata key `chargpt`: not a chargpt model; {REMEDY}"
        )
    try:
        metadata = json.loads(raw["chargpt"], object_pairs_hook=unique_keys)
        version = metadata["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ChargptError(
            f"{path}: the metadata key `chargpt` is not the JSON that chargpt writes; {REMEDY}"
        ) from None
    if not isinstance(metadata.get("params"), dict):
        raise ChargptError(f"{path}: the metadata key `chargpt` is not the JSON that chargpt writes; {REMEDY}")
    if type(version) is not int or version < 1:
        raise ChargptError(f"{path}: format_version is {str(version)[:20]!r}; expected {FORMAT_VERSION}; {REMEDY}")
    if version > FORMAT_VERSION:
        raise ChargptError(
            f"{path}: format version {escape(version, 20)} is newer than {FORMAT_VERSION}: update chargpt to read it"
        )
    return metadata


def _parse_config(path: str | Path, metadata: Mapping[str, Any]) -> tuple[GPTConfig, Vocab]:
    try:
        config = GPTConfig(**metadata["config"])
        if not isinstance(metadata["vocab"], str):
            raise TypeError("vocab is not text")
        vocab = Vocab(metadata["vocab"])
    except (ValueError, KeyError, TypeError) as error:
        raise ChargptError(
            f"{path}: the file's architecture or vocabulary is damaged: {escape(error)}; {REMEDY}"
        ) from None
    if len(vocab) != config.vocab_size:
        raise ChargptError(
            f"{path}: vocab_size is {escape(config.vocab_size, 20)}, but the vocabulary has {len(vocab)} characters;"
            f" {REMEDY}"
        )
    return config, vocab


def _empty_model(path: str | Path, file: Any, config: GPTConfig) -> GPT:
    """Build the model without weights; check that the file's tensors have its names, shapes and dtypes."""
    found = {name: (file.get_slice(name).get_shape(), file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
    # A stranger may have declared any size: compare with the tensors in the file before building a model.
    C = config.n_embd
    outer = {"wte.weight": [config.vocab_size, C], "wpe.weight": [config.block_size, C]}
    outer["h.0.attn.c_attn.weight"] = [3 * C, C]
    for name, shape in outer.items():
        if name in found and found[name][0] != shape:
            raise ChargptError(
                f"{path}: {name} has shape {escape(found[name][0], 60)}, expected {escape(shape, 60)}; {REMEDY}"
            )
    if TENSORS_PER_LAYER * config.n_layer > len(found) or not outer.keys() <= found.keys():
        missing = (
            ", ".join(sorted(outer.keys() - found.keys()))
            or f"its {escape(config.n_layer, 20)} layers are not all there"
        )
        raise ChargptError(f"{path}: missing tensors: {missing}; {REMEDY}")
    if config.n_layer > MAX_LAYERS:
        raise ChargptError(
            f"{path}: the model has {config.n_layer} layers; chargpt reads at most {MAX_LAYERS}; use a smaller model"
        )
    with torch.device("meta"):  # no memory and no initial values, because the file's weights follow
        model = GPT(config)
    expected = {name: list(t.shape) for name, t in model.state_dict().items()}
    if missing_names := sorted(expected.keys() - found.keys()):
        raise ChargptError(f"{path}: missing tensors: {_first(missing_names)}; {REMEDY}")
    if extra := sorted(found.keys() - expected.keys()):
        raise ChargptError(f"{path}: unexpected tensors: {_first(extra)}; {REMEDY}")
    for name, (shape, dtype) in found.items():
        if shape != expected[name] or dtype != "F32":
            raise ChargptError(
                f"{path}: {name} is {dtype} {escape(shape, 60)}, expected F32 {expected[name]}; {REMEDY}"
            )
    return model


def _first(names: list[str]) -> str:
    return ", ".join(escape(n, 60) for n in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
