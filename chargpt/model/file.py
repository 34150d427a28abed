"""The model file: weights, vocabulary and training parameters in one self-contained .safetensors file.

The file holds the tensors and one metadata key, `chargpt`. Its value is JSON with `format_version`, `config` (the
architecture), `vocab` (the characters), `text` (counts of the text that they come from, which the first release did not
write), `params` (the parameters that the model was trained with) and `sha256` (a checksum of the tensors and of the
other entries). A file is untrusted input: the declared sizes are compared with the tensors in the file before anything
of these sizes is allocated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chargpt.errors import ChargptError, escape
from chargpt.files import unique_keys
from chargpt.model.config import MAX_LAYERS, GPTConfig
from chargpt.tensors import TensorFile, is_finite, open_tensors, tensor_hash, write_tensors
from chargpt.text.vocab import Vocab

if TYPE_CHECKING:
    import torch

    from chargpt.model.gpt import GPT

FORMAT_VERSION = 1
REMEDY = "use a file that chargpt wrote, or fetch it again"


@dataclass(frozen=True, eq=False)
class ModelFile:
    """The content of a model file, checked.

    weights: by their names in `GPT`; float32, memory-mapped. params: what the model was trained with. metrics: of the
    trained model; files of format version 1 have none.
    """

    config: GPTConfig
    vocab: Vocab
    weights: dict[str, NDArray[np.float32]]
    params: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


def read_model(path: str | Path) -> ModelFile:
    """Read and check a model file, without loading torch. Nothing in the file is trusted or executed.

    Raises ChargptError if the file is refused; the message says why.
    """
    file = open_tensors(path)
    facts = _parse_facts(path, file.metadata)
    try:
        config, vocab = GPTConfig(**facts["config"]), Vocab(facts["vocab"], **facts.get("text", {}))
        if len(vocab) != config.vocab_size:
            raise ChargptError(f"the vocabulary has {len(vocab)} characters, but vocab_size is {config.vocab_size}")
    except (ValueError, KeyError, TypeError) as error:
        raise _refused(path, f"the file's architecture or vocabulary is damaged: {escape(error)}") from None
    _check_shapes(path, file, config)
    weights = file.arrays()
    claimed = facts.pop("sha256", None)
    if tensor_hash(weights, facts) != claimed:
        raise _refused(path, "the content does not match its own sha256: damaged in transfer", "fetch it again")
    if name := _diverged(weights):
        raise _refused(path, f"{name} holds nan or infinite values: the model diverged", "use another model")
    return ModelFile(config, vocab, weights, facts["params"], facts.get("metrics", {}), facts["format_version"])


def _refused(path: str | Path, reason: str, remedy: str = REMEDY) -> ChargptError:
    return ChargptError(f"{path}: {reason}; {remedy}")


def _parse_facts(path: str | Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The entries of the metadata key `chargpt`, their format version checked.

    path: the file's name in messages. Raises ChargptError if they are not those of a chargpt model.
    """
    if "chargpt" not in metadata:
        raise _refused(path, "a safetensors file without the metadata key `chargpt`: not a chargpt model")
    try:
        facts = json.loads(metadata["chargpt"], object_pairs_hook=unique_keys)
        version = facts["format_version"]
        known = type(version) is int and version > 0
        if not known or not isinstance(facts["params"], dict) or not isinstance(facts.get("metrics", {}), dict):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _refused(path, "the metadata key `chargpt` is not the JSON that chargpt writes") from None
    if version > FORMAT_VERSION:
        raise _refused(path, f"format version {escape(version, 20)} is newer than {FORMAT_VERSION}", "update chargpt")
    return facts


def _check_shapes(path: str | Path, file: TensorFile, config: GPTConfig) -> None:
    """Raise ChargptError unless the file's tensors have the names, shapes and dtypes of the model's weights."""
    if config.n_layer > MAX_LAYERS:  # checked before the names of all layers are listed
        raise _refused(path, f"{escape(config.n_layer, 20)} layers exceed {MAX_LAYERS}", "use a smaller model")
    expected = config.shapes()
    if names := expected.keys() ^ file.shapes.keys():
        raise _refused(path, f"missing or unexpected tensors ({len(names)}): {escape(', '.join(sorted(names)))}")
    for name, shape in expected.items():
        if file.shapes[name] != list(shape) or file.formats[name] != "F32":
            found = f"{file.formats[name]} {escape(file.shapes[name], 60)}"
            raise _refused(path, f"{name} is {found}, expected F32 {escape(list(shape), 60)}")


def _diverged(weights: Mapping[str, NDArray[np.float32]]) -> str | None:
    """The name of the first tensor with a value that is not finite."""
    return next((name for name, tensor in weights.items() if not is_finite(tensor)), None)


def save_model(path: str | Path, model: GPT, vocab: Vocab, params: Mapping[str, Any] | None = None) -> None:
    """Write a model and its vocabulary. The same weights, vocabulary and params always give the same bytes.

    params: JSON values for people to read; nothing depends on them.
    Raises ChargptError if a weight is not finite, so that nobody takes a diverged model for a good one.
    """
    tensors = model.arrays()
    if name := _diverged(tensors):
        raise _refused(path, f"not written: {name} holds nan or infinite values", "train with a lower lr")
    facts: dict[str, Any] = {"format_version": FORMAT_VERSION, "params": dict(params or {})}
    facts |= {"config": asdict(model.config), "vocab": "".join(vocab.itos)}
    facts["text"] = {"seen_once": vocab.seen_once, "length": vocab.length}
    facts["sha256"] = tensor_hash(tensors, facts)
    write_tensors(path, tensors, {"chargpt": json.dumps(facts, sort_keys=True)})


def load_model(path: str | Path, device: str | torch.device = "cpu") -> tuple[GPT, Vocab]:
    """Load a model, in evaluation mode, and its vocabulary.

    The weights are memory-mapped until they are moved to another device. Nothing in the file is trusted or executed.
    Raises ChargptError if the file is refused; the message says why.
    """
    from chargpt.model.gpt import GPT  # loads torch, which takes seconds

    file = read_model(path)
    return GPT.from_arrays(file.config, file.weights).to(device).eval(), file.vocab
