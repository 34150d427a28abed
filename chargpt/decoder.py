"""Reading characters and predicting the next one, as fast as the machine can: ONNX Runtime on a CPU.

At this size torch spends most of a character's time on starting operations, not on arithmetic. ONNX Runtime runs the
same step three times as fast; the graph is written from the model's weights in milliseconds. Elsewhere (a GPU) the
model itself runs, with its key/value cache. `chargpt.model` stays the definition: tests hold both to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from chargpt.errors import ChargptError
from chargpt.files import atomic_write
from chargpt.model import GPT, KVCache
from chargpt.vocab import Vocab

IDS = NDArray[np.int64]
PARAMETERS_PER_THREAD = 400_000  # that a character must be multiplied with for another thread to pay
CONTRIB = "com.microsoft"  # ONNX Runtime's own operators: attention with a cache, sum and norm in one
LARGEST_GRAPH = 1_900_000_000  # bytes; an ONNX file with its weights inside ends at 2 GiB
OPSET, CONTRIB_OPSET, IR_VERSION = 20, 1, 9  # the oldest that have Gelu


class Decoder(Protocol):
    """A model that has read `length` characters of each of a batch of texts."""

    @property
    def length(self) -> int:
        """Characters read."""

    def read(self, idx: IDS) -> NDArray[np.float32]:
        """Read idx (B, S) after what was read before; the logits (B, vocab_size) of what follows the last."""

    def forget(self) -> None:
        """Start again with nothing read."""


def make_decoder(model: GPT, batch_size: int) -> Decoder:
    """The fastest decoder for where the model is and how large."""
    fits = 4 * sum(p.numel() for p in model.parameters()) < LARGEST_GRAPH
    onnx_runs = fits and model.wte.weight.device.type == "cpu"
    return OnnxDecoder(model, batch_size) if onnx_runs else TorchDecoder(model, batch_size)


class TorchDecoder:
    """The model itself, with its cache, on any device."""

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
    """The model's weights, as they are now, in an ONNX Runtime session."""

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
        # Everything is bound to memory once; a cache is read and extended in place.
        self.binding = self.session.io_binding()
        shape = (batch_size, c.n_head, c.block_size, _head_size(model))
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
            if self.length:  # the attention takes several positions at once only into an empty cache
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


def save_onnx(model: GPT, vocab: Vocab, path: str | Path) -> None:
    """Write the model as one .onnx file for ONNX Runtime, its characters in the metadata as `vocab`.

    Inputs: idx (B, S) int64; positions (S,) int64, where they stand; last_position (B,) int32, the largest of them;
    length (1,) int32, the same plus 1; past_key_I and past_value_I (B, n_head, block_size, head size) float32.
    Outputs: logits (B, S, vocab_size), present_key_I, present_value_I. S above 1 only at position 0.
    Raises ChargptError if the weights do not fit into one file.
    """
    size = 4 * sum(p.numel() for p in model.parameters())
    if size >= LARGEST_GRAPH:
        raise ChargptError(
            f"{path}: {size:,} bytes of weights; one .onnx file holds 2 GiB: export to a directory instead"
        )
    graph = onnx_model(model)
    helper.set_model_props(graph, {"vocab": "".join(vocab.itos), "block_size": str(model.config.block_size)})
    with atomic_write(path) as file:
        file.write(graph.SerializeToString(deterministic=True))


def onnx_model(model: GPT) -> onnx.ModelProto:
    """The model as an ONNX graph: what GPT.forward does with a cache, node by node."""
    c = model.config
    weights = {name: t.detach().cpu().float().numpy() for name, t in model.state_dict().items()}
    nodes: list[onnx.NodeProto] = []
    used: dict[str, NDArray[np.float32]] = {}

    def weight(name: str, array: NDArray[np.float32]) -> str:
        used[name] = array
        return name

    def node(kind: str, *inputs: str, outputs: Sequence[str] = (), **attributes: Any) -> str:
        """Adds a node, with `outputs` beside its first, which is returned."""
        first = f"{kind}_{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [first, *outputs], **attributes))
        return first

    def embedding(name: str, ids: str) -> str:
        return node("Gather", weight(name, weights[f"{name}.weight"]), ids)

    def parts(name: str) -> list[str]:
        return [weight(f"{name}.{part}", weights[f"{name}.{part}"]) for part in ("weight", "bias")]

    def matmul(name: str, x: str) -> str:
        return node("MatMul", x, weight(f"{name}.weight", weights[f"{name}.weight"].T))

    def linear(name: str, x: str) -> str:
        return node("Add", matmul(name, x), weight(f"{name}.bias", weights[f"{name}.bias"]))

    def add_and_norm(x: str, projection: str, y: str, norm: str) -> tuple[str, str]:
        """x + projection(y), and its LayerNorm; one node for the bias, the sum and the norm."""
        total = f"sum_{len(nodes)}"
        y = matmul(projection, y)
        bias = weight(f"{projection}.bias", weights[f"{projection}.bias"])
        normed = node(
            "SkipLayerNormalization", x, y, *parts(norm), bias, outputs=["", "", total], domain=CONTRIB, epsilon=1e-5
        )
        return total, normed

    inputs = [
        helper.make_tensor_value_info("idx", TensorProto.INT64, ["B", "S"]),
        helper.make_tensor_value_info("positions", TensorProto.INT64, ["S"]),
        helper.make_tensor_value_info("last_position", TensorProto.INT32, ["B"]),
        helper.make_tensor_value_info("length", TensorProto.INT32, [1]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "S", c.vocab_size])]
    hs, padded = c.n_embd // c.n_head, _head_size(model)
    x = node("Add", embedding("wte", "idx"), embedding("wpe", "positions"))
    normed = node("LayerNormalization", x, *parts("h.0.ln_1"), axis=-1, epsilon=1e-5)
    for i in range(c.n_layer):
        attention, mlp = f"h.{i}.attn", f"h.{i}.mlp"
        if padded > hs:  # the attention wants multiples of 8: zeros change nothing
            qkv = weights[f"{attention}.c_attn.weight"].reshape(3 * c.n_head, hs, c.n_embd)
            qkv = np.pad(qkv, ((0, 0), (0, padded - hs), (0, 0))).reshape(-1, c.n_embd)
            out = weights[f"{attention}.c_proj.weight"].reshape(c.n_embd, c.n_head, hs)
            out = np.pad(out, ((0, 0), (0, 0), (0, padded - hs))).reshape(c.n_embd, -1)
            weights[f"{attention}.c_attn.weight"], weights[f"{attention}.c_proj.weight"] = qkv, out
        names = [f"key_{i}", f"value_{i}"]
        y = node(
            "GroupQueryAttention",
            *(matmul(f"{attention}.c_attn", normed), "", ""),
            *(*(f"past_{name}" for name in names), "last_position", "length"),
            outputs=[f"present_{name}" for name in names],
            domain=CONTRIB,
            num_heads=c.n_head,
            kv_num_heads=c.n_head,
            scale=float(c.scale),
        )
        shape: list[str | int | None] = ["B", c.n_head, c.block_size, padded]
        inputs += [helper.make_tensor_value_info(f"past_{name}", TensorProto.FLOAT, shape) for name in names]
        outputs += [helper.make_tensor_value_info(f"present_{name}", TensorProto.FLOAT, shape) for name in names]
        x, normed = add_and_norm(x, f"{attention}.c_proj", y, f"h.{i}.ln_2")
        hidden = node({"gelu": "Gelu", "relu": "Relu"}[c.activation], linear(f"{mlp}.c_fc", normed))
        x, normed = add_and_norm(x, f"{mlp}.c_proj", hidden, f"h.{i + 1}.ln_1" if i + 1 < c.n_layer else "ln_f")
    nodes.append(helper.make_node("Identity", [linear("lm_head", normed)], ["logits"]))
    graph = helper.make_graph(nodes, "chargpt", inputs, outputs)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, CONTRIB_OPSET)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="chargpt")
    for name, array in used.items():  # last, because the makers above copy all that they are given
        made.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return made


def _head_size(model: GPT) -> int:
    """The head size, rounded up to the multiple of 8 that the attention wants."""
    return -(-model.config.n_embd // model.config.n_head // 8) * 8
