"""Read characters and predict the next one: fast, with ONNX Runtime, on a CPU; with torch on other devices.

For a model of this size, torch spends most of the time of a character on starting operations, not on arithmetic. ONNX
Runtime runs the same step three times as fast, and `graph.py` makes the graph from the model's weights in milliseconds.
On other devices, or if the model is too large for one graph, the torch model itself runs with its key/value cache.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from chargpt.graph import fits, onnx_model, padded_head_size
from chargpt.model import GPT, KVCache

IDS = NDArray[np.int64]
PARAMETERS_PER_THREAD = 400_000  # work per character that justifies another thread


class Decoder(Protocol):
    """Reads a batch of texts of equal length, and predicts the next character of each."""

    @property
    def length(self) -> int:
        """How many characters of each text have been read."""

    def read(self, idx: IDS) -> NDArray[np.float32]:
        """Read idx (B, S) after the characters read before; return the next character's logits (B, vocab_size)."""

    def forget(self) -> None:
        """Forget every character that was read."""


def make_decoder(model: GPT, batch_size: int) -> Decoder:
    """The fastest decoder for the model's device and size."""
    onnx_runs = fits(model) and model.wte.weight.device.type == "cpu"
    return OnnxDecoder(model, batch_size) if onnx_runs else TorchDecoder(model, batch_size)


class TorchDecoder:
    """Runs the torch model itself, with its key/value cache, on any device."""

    def __init__(self, model: GPT, batch_size: int) -> None:
        self.model = model
        self.cache = KVCache(model, batch_size)

    @property
    def length(self) -> int:
        return self.cache.length

    def forget(self) -> None:
        self.cache.length = 0

    @torch.inference_mode()
    def read(self, idx: IDS) -> NDArray[np.float32]:
        was_training = self.model.training
        self.model.eval()
        logits = self.model(torch.from_numpy(idx).to(self.model.wte.weight.device), self.cache)[:, -1]
        self.model.train(was_training)
        return logits.cpu().numpy()


class OnnxDecoder:
    """Runs a copy of the model's present weights in an ONNX Runtime session, on a CPU."""

    def __init__(self, model: GPT, batch_size: int) -> None:
        c = model.config
        options = onnxruntime.SessionOptions()
        parameters = sum(p.numel() for p in model.h.parameters())
        wanted = 1 + parameters * batch_size // PARAMETERS_PER_THREAD
        options.intra_op_num_threads = max(1, min(torch.get_num_threads(), wanted))
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(
            onnx_model(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        # Inputs and outputs are bound to memory once. A cache is input and output at once: it is extended in place.
        self.binding = self.session.io_binding()
        shape = (batch_size, c.n_head, c.block_size, padded_head_size(model))
        self.caches = {
            f"{kind}_{i}": np.zeros(shape, np.float32) for i in range(c.n_layer) for kind in ("key", "value")
        }
        for name, cache in self.caches.items():
            self._bind(f"past_{name}", cache)
            self._bind(f"present_{name}", cache, output=True)
        self.last, self.total = np.zeros(batch_size, np.int32), np.zeros(1, np.int32)
        self._bind("last_position", self.last)
        self._bind("length", self.total)
        self.one, self.position = np.zeros((batch_size, 1), np.int64), np.zeros(1, np.int64)
        self.logits = np.zeros((batch_size, 1, c.vocab_size), np.float32)
        self._bind_step(self.one, self.position, self.logits)
        self.length = 0

    def forget(self) -> None:
        self.length = 0

    def read(self, idx: IDS) -> NDArray[np.float32]:
        batch_size, count = idx.shape
        self.last[:] = self.length + count - 1
        self.total[0] = self.length + count
        if count == 1:
            self.one[:] = idx
            self.position[0] = self.length
            self.session.run_with_iobinding(self.binding)
            logits = self.logits
        else:
            if self.length:  # ONNX Runtime's attention reads several positions at once only if its cache is empty
                return [self.read(column) for column in np.split(idx, count, axis=1)][-1]
            logits = np.empty((batch_size, count, self.logits.shape[2]), np.float32)
            positions = np.arange(count)
            idx = np.ascontiguousarray(idx)
            self._bind_step(idx, positions, logits)
            self.session.run_with_iobinding(self.binding)
            self._bind_step(self.one, self.position, self.logits)
        self.length += count
        return logits[:, -1]

    def _bind_step(self, idx: IDS, positions: IDS, logits: NDArray[np.float32]) -> None:
        self._bind("idx", idx)
        self._bind("positions", positions)
        self._bind("logits", logits, output=True)

    def _bind(self, name: str, array: NDArray[Any], output: bool = False) -> None:
        bind = self.binding.bind_output if output else self.binding.bind_input
        bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
