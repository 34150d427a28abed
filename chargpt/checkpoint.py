"""A model and its vocabulary in one self-contained .safetensors file, and back.

The file holds the tensors and one metadata key, `chargpt`: JSON with `format_version`, `config` (the
architecture), `vocab` (the characters), `params` (what it was trained with) and `sha256` (of all of it).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chargpt.errors import ChargptError, shown
from chargpt.files import open_tensors, unique_keys, write_tensors
from chargpt.model import GPT, GPTConfig
from chargpt.vocab import Vocab

FORMAT_VERSION = 1
TENSORS_PER_LAYER = 11
MAX_LAYERS = 1000  # as in params.yaml; building a model takes a millisecond for each


def save_model(path: str | Path, model: GPT, vocab: Vocab, params: Mapping[str, Any] | None = None) -> None:
    """Write model and vocabulary; the same weights, vocabulary and params always give the same bytes.

    params: JSON values kept for the reader's information; nothing depends on them.
    Raises ChargptError if a weight is not finite: a diverged model must not pass for a good one.
    """
    tensors = {name: t.detach().to("cpu", torch.float32).contiguous() for name, t in model.state_dict().items()}
    for name, tensor in tensors.items():
        if not _finite(tensor):
            raise ChargptError(f"{path}: not written: {name} holds nan or infinite values")
    metadata = {
        "format_version": FORMAT_VERSION,
        "config": asdict(model.config),
        "vocab": "".join(vocab.itos),
        "params": dict(params or {}),
    }
    metadata["sha256"] = tensor_hash(tensors, metadata)
    write_tensors(path, tensors, {"chargpt": json.dumps(metadata, sort_keys=True)})


def load_model(path: str | Path, device: str | torch.device = "cpu") -> tuple[GPT, Vocab]:
    """The model, ready to evaluate, and its vocabulary. The weights are memory-mapped until they are moved.

    Raises ChargptError saying why a file is refused; nothing in it is trusted or executed.
    """
    with open_tensors(path) as file:
        metadata = _parse_metadata(path, file.metadata())
        config, vocab = _parse_config(path, metadata)
        model = _empty_model(path, file, config)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    claimed = metadata.pop("sha256", None)
    if tensor_hash(tensors, metadata) != claimed:
        raise ChargptError(f"{path}: the content does not match its own sha256: damaged on its way; fetch it again")
    for name, tensor in tensors.items():
        if not _finite(tensor):
            raise ChargptError(f"{path}: {name} holds nan or infinite values: the weights of a diverged model")
    model.load_state_dict(tensors, assign=True)
    return model.to(device).eval(), vocab


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What the file says of itself: format_version, config, vocab, params, sha256. Raises as `load_model`."""
    with open_tensors(path) as file:
        return _parse_metadata(path, file.metadata())


def tensor_hash(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """sha256 (hexadecimal) of the tensors' own sha256, in the order of their names, and the facts as sorted JSON."""
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        digests = list(pool.map(lambda name: hashlib.sha256(tensors[name].numpy().data).digest(), sorted(tensors)))
    return hashlib.sha256(b"".join(digests) + json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _parse_metadata(path: str | Path, raw: Mapping[str, str] | None) -> dict[str, Any]:
    if not raw or "chargpt" not in raw:
        raise ChargptError(f"{path}: a safetensors file without the metadata key `chargpt`: not a chargpt model")
    try:
        metadata = json.loads(raw["chargpt"], object_pairs_hook=unique_keys)
        version = metadata["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ChargptError(f"{path}: the metadata key `chargpt` is not the JSON that chargpt writes") from None
    if not isinstance(metadata.get("params"), dict):
        raise ChargptError(f"{path}: the metadata key `chargpt` is not the JSON that chargpt writes")
    if type(version) is not int or version < 1:
        raise ChargptError(f"{path}: format_version is {str(version)[:20]!r}; expected {FORMAT_VERSION}")
    if version > FORMAT_VERSION:
        raise ChargptError(
            f"{path}: format version {shown(version, 20)} is newer than {FORMAT_VERSION}: update chargpt to read it"
        )
    return metadata


def _parse_config(path: str | Path, metadata: Mapping[str, Any]) -> tuple[GPTConfig, Vocab]:
    try:
        config = GPTConfig(**metadata["config"])
        if not isinstance(metadata["vocab"], str):
            raise TypeError("vocab is not text")
        vocab = Vocab(metadata["vocab"])
    except (ValueError, KeyError, TypeError) as error:
        raise ChargptError(f"{path}: the file's architecture or vocabulary is damaged: {shown(error)}") from None
    if len(vocab) != config.vocab_size:
        raise ChargptError(
            f"{path}: vocab_size is {shown(config.vocab_size, 20)}, but the vocabulary has {len(vocab)} characters"
        )
    return config, vocab


def _finite(tensor: Tensor) -> bool:
    """Whether every value is a number; the sum, which is fast, is one only then (or if it overflows)."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def _empty_model(path: str | Path, file: Any, config: GPTConfig) -> GPT:
    """The model without weights, once names, shapes and dtypes are found to be the architecture's."""
    found = {name: (file.get_slice(name).get_shape(), file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
    # The declared sizes are a stranger's: bound them by what is really in the file before building from them.
    C = config.n_embd
    outer = {"wte.weight": [config.vocab_size, C], "wpe.weight": [config.block_size, C]}
    outer["h.0.attn.c_attn.weight"] = [3 * C, C]
    for name, shape in outer.items():
        if name in found and found[name][0] != shape:
            raise ChargptError(f"{path}: {name} has shape {shown(found[name][0], 60)}, expected {shown(shape, 60)}")
    if TENSORS_PER_LAYER * config.n_layer > len(found) or not outer.keys() <= found.keys():
        missing = (
            ", ".join(sorted(outer.keys() - found.keys()))
            or f"its {shown(config.n_layer, 20)} layers are not all there"
        )
        raise ChargptError(f"{path}: missing tensors: {missing}")
    if config.n_layer > MAX_LAYERS:
        raise ChargptError(f"{path}: the model has {config.n_layer} layers; chargpt reads at most {MAX_LAYERS}")
    with torch.device("meta"):  # no initialising of weights that are replaced at once
        model = GPT(config)
    expected = {name: list(t.shape) for name, t in model.state_dict().items()}
    if missing_names := sorted(expected.keys() - found.keys()):
        raise ChargptError(f"{path}: missing tensors: {_first(missing_names)}")
    if extra := sorted(found.keys() - expected.keys()):
        raise ChargptError(f"{path}: unexpected tensors: {_first(extra)}")
    for name, (shape, dtype) in found.items():
        if shape != expected[name] or dtype != "F32":
            raise ChargptError(f"{path}: {name} is {dtype} {shown(shape, 60)}, expected F32 {expected[name]}")
    return model


def _first(names: list[str]) -> str:
    return ", ".join(shown(n, 60) for n in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
