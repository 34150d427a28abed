"""The model file: weights, vocabulary and training parameters in one self-contained .safetensors file.

The file holds the tensors and one metadata key, `chargpt`. Its value is JSON with `format_version`, `config` (the
architecture), `vocab` (the characters), `params` (the parameters that the model was trained with) and `sha256` (a
checksum of the tensors and of the other entries). A file is untrusted input: the declared sizes are compared with the
tensors in the file before anything of these sizes is allocated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chargpt.errors import ChargptError, escape
from chargpt.files import unique_keys
from chargpt.model.config import GPTConfig
from chargpt.tensors import TensorFile, is_finite, open_tensors, tensor_hash, write_tensors
from chargpt.text.vocab import Vocab

if TYPE_CHECKING:
    import torch

    from chargpt.model.gpt import GPT

FORMAT_VERSION = 1
TENSORS_PER_LAYER = 11
MAX_LAYERS = 1000  # the limit of params.yaml too; building a model takes a millisecond per layer
REMEDY = "use a file that chargpt wrote, or fetch it again"


class ModelFile(NamedTuple):
    """The content of a model file, checked: the architecture, the vocabulary, and the weights by their names in `GPT`.

    The weights are float32 and memory-mapped.
    """

    config: GPTConfig
    vocab: Vocab
    weights: dict[str, NDArray[np.float32]]


def read_model(path: str | Path) -> ModelFile:
    """Read and check a model file, without loading torch. Nothing in the file is trusted or executed.

    Raises ChargptError if the file is refused; the message says why.
    """
    file = open_tensors(path)
    metadata = _parse_metadata(path, file.metadata)
    config, vocab = _parse_config(path, metadata)
    _check_shapes(path, file, config)
    weights = file.arrays()
    claimed = metadata.pop("sha256", None)
    if tensor_hash(weights, metadata) != claimed:
        raise ChargptError(f"{path}: the content does not match its own sha256: damaged in transfer; fetch it again")
    for name, tensor in weights.items():
        if not is_finite(tensor):
            raise ChargptError(
                f"{path}: {name} holds nan or infinite values: the weights of a diverged model; use another model"
            )
    return ModelFile(config, vocab, weights)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The entries of the key `chargpt`. Raises ChargptError if the file is not a model of a known format version."""
    return _parse_metadata(path, open_tensors(path).metadata)


def _parse_metadata(path: str | Path, raw: Mapping[str, str] | None) -> dict[str, Any]:
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


def _check_shapes(path: str | Path, file: TensorFile, config: GPTConfig) -> None:
    """Check that the file's tensors have the names, shapes and dtypes of the model's weights."""
    found = {name: (shape, file.formats[name]) for name, shape in file.shapes.items()}
    # A stranger may have declared any size: compare with the tensors in the file before listing all shapes.
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
    expected = {name: list(shape) for name, shape in config.shapes().items()}
    if missing_names := sorted(expected.keys() - found.keys()):
        raise ChargptError(f"{path}: missing tensors: {_first(missing_names)}; {REMEDY}")
    if extra := sorted(found.keys() - expected.keys()):
        raise ChargptError(f"{path}: unexpected tensors: {_first(extra)}; {REMEDY}")
    for name, (shape, dtype) in found.items():
        if shape != expected[name] or dtype != "F32":
            raise ChargptError(
                f"{path}: {name} is {dtype} {escape(shape, 60)}, expected F32 {expected[name]}; {REMEDY}"
            )


def _first(names: list[str]) -> str:
    return ", ".join(escape(n, 60) for n in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def save_model(path: str | Path, model: GPT, vocab: Vocab, params: Mapping[str, Any] | None = None) -> None:
    """Write a model and its vocabulary. The same weights, vocabulary and params always give the same bytes.

    params: JSON values for people to read; nothing depends on them.
    Raises ChargptError if a weight is not finite, so that nobody takes a diverged model for a good one.
    """
    tensors = model.arrays()
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise ChargptError(f"{path}: not written: {name} holds nan or infinite values; train with a lower lr")
    metadata = {
        "format_version": FORMAT_VERSION,
        "config": asdict(model.config),
        "vocab": "".join(vocab.itos),
        "params": dict(params or {}),
    }
    metadata["sha256"] = tensor_hash(tensors, metadata)
    write_tensors(path, tensors, {"chargpt": json.dumps(metadata, sort_keys=True)})


def load_model(path: str | Path, device: str | torch.device = "cpu") -> tuple[GPT, Vocab]:
    """Load a model, in evaluation mode, and its vocabulary.

    The weights are memory-mapped until they are moved to another device. Nothing in the file is trusted or executed.
    Raises ChargptError if the file is refused; the message says why.
    """
    from chargpt.model.gpt import GPT  # loads torch, which takes seconds

    file = read_model(path)
    return GPT.from_arrays(file.config, file.weights).to(device).eval(), file.vocab
