"""Save a model and its vocabulary in one self-contained .safetensors file, and load them.

The file holds the tensors and one metadata key, `chargpt`. Its value is JSON with `format_version`, `config` (the
architecture), `vocab` (the characters), `params` (the parameters that the model was trained with) and `sha256` (a
checksum of the tensors and of the other entries).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chargpt.errors import ChargptError
from chargpt.model_file import FORMAT_VERSION, read_model
from chargpt.tensors import is_finite, tensor_hash, write_tensors
from chargpt.vocab import Vocab

if TYPE_CHECKING:
    import torch

    from chargpt.model import GPT


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
    from chargpt.model import GPT  # loads torch, which takes seconds

    file = read_model(path)
    return GPT.from_arrays(file.config, file.weights).to(device).eval(), file.vocab
