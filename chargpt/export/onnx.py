"""Export a model as one .onnx file for ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

from onnx import helper

from chargpt.errors import ChargptError
from chargpt.files import atomic_write
from chargpt.graph import fits, onnx_model, weight_bytes
from chargpt.model import GPT
from chargpt.vocab import Vocab


def save_onnx(model: GPT, vocab: Vocab, path: str | Path) -> None:
    """Write a model as one .onnx file for ONNX Runtime.

    The inputs and outputs are those of `graph.onnx_model`. The metadata holds the characters, as `vocab`, and
    `block_size`.
    Raises ChargptError if the weights do not fit into one file.
    """
    if not fits(model):
        raise ChargptError(
            f"{path}: {weight_bytes(model):,} bytes of weights; one .onnx file holds 2 GiB: export to a"
            " directory instead"
        )
    graph = onnx_model(model)
    helper.set_model_props(graph, {"vocab": "".join(vocab.itos), "block_size": str(model.config.block_size)})
    with atomic_write(path) as file:
        file.write(graph.SerializeToString(deterministic=True))
