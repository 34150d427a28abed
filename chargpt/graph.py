"""The model as an ONNX graph for ONNX Runtime: `GPT.forward` with a cache, node by node.

`decoder.py` runs the graph, and `export/onnx.py` writes it to a file. `model.py` defines what the graph must compute;
tests compare both with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from chargpt.model import GPT

CONTRIB = "com.microsoft"  # ONNX Runtime's own operators: attention with a cache, and a sum with its LayerNorm
LARGEST_GRAPH = 1_900_000_000  # bytes of weights; an ONNX file that contains its weights is limited to 2 GiB
OPSET, CONTRIB_OPSET, IR_VERSION = 20, 1, 9  # the oldest versions with the operator Gelu


def weight_bytes(model: GPT) -> int:
    """Bytes of the weights in float32."""
    return 4 * sum(p.numel() for p in model.parameters())


def fits(model: GPT) -> bool:
    """Whether the weights fit into one ONNX graph."""
    return weight_bytes(model) < LARGEST_GRAPH


def padded_head_size(model: GPT) -> int:
    """The head size, rounded up to a multiple of 8, as ONNX Runtime's attention requires."""
    return -(-model.config.n_embd // model.config.n_head // 8) * 8


def onnx_model(model: GPT) -> onnx.ModelProto:
    """The model as an ONNX graph that reads S characters of each of B texts, and extends a cache with them.

    Inputs: idx (B, S) int64, the characters; positions (S,) int64, their positions in the context; last_position (B,)
    int32, the largest of these positions; length (1,) int32, last_position + 1; past_key_I and past_value_I (B, n_head,
    block_size, padded head size) float32, the cache of layer I.
    Outputs: logits (B, S, vocab_size) float32; present_key_I and present_value_I, the extended cache.
    S may be larger than 1 only if the cache is empty, at position 0.
    """
    c = model.config
    graph = _Graph(model)
    x = graph.node("Add", graph.embedding("wte", "idx"), graph.embedding("wpe", "positions"))
    normed = graph.node("LayerNormalization", x, *graph.parts("h.0.ln_1"), axis=-1, epsilon=1e-5)
    for i in range(c.n_layer):
        attention, mlp = f"h.{i}.attn", f"h.{i}.mlp"
        y = graph.attention(i, normed)
        x, normed = graph.add_and_norm(x, f"{attention}.c_proj", y, f"h.{i}.ln_2")
        hidden = graph.node({"gelu": "Gelu", "relu": "Relu"}[c.activation], graph.linear(f"{mlp}.c_fc", normed))
        next_norm = f"h.{i + 1}.ln_1" if i + 1 < c.n_layer else "ln_f"
        x, normed = graph.add_and_norm(x, f"{mlp}.c_proj", hidden, next_norm)
    return graph.finish(graph.linear("lm_head", normed))


class _Graph:
    """A graph under construction. Each method adds nodes or weights and returns the name of its result."""

    def __init__(self, model: GPT) -> None:
        self.config, self.padded = model.config, padded_head_size(model)
        self.weights = {name: t.detach().cpu().float().numpy() for name, t in model.state_dict().items()}
        self.nodes: list[onnx.NodeProto] = []
        self.used: dict[str, NDArray[np.float32]] = {}
        value, integer = helper.make_tensor_value_info, TensorProto.INT64
        self.inputs = [value("idx", integer, ["B", "S"]), value("positions", integer, ["S"])]
        self.inputs += [value("last_position", TensorProto.INT32, ["B"]), value("length", TensorProto.INT32, [1])]
        self.outputs = [value("logits", TensorProto.FLOAT, ["B", "S", self.config.vocab_size])]

    def node(self, kind: str, *inputs: str, outputs: Sequence[str] = (), **attributes: Any) -> str:
        """Add a node and return the name of its first output. outputs: names of the further ones."""
        first = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [first, *outputs], **attributes))
        return first

    def weight(self, name: str, array: NDArray[np.float32]) -> str:
        """Add an array to the graph's weights."""
        self.used[name] = array
        return name

    def parts(self, name: str) -> list[str]:
        """Weight and bias of a layer."""
        return [self.weight(f"{name}.{part}", self.weights[f"{name}.{part}"]) for part in ("weight", "bias")]

    def embedding(self, name: str, ids: str) -> str:
        """The rows of an embedding for ids."""
        return self.node("Gather", self.weight(name, self.weights[f"{name}.weight"]), ids)

    def matmul(self, name: str, x: str) -> str:
        """A linear layer without its bias."""
        return self.node("MatMul", x, self.weight(f"{name}.weight", self.weights[f"{name}.weight"].T))

    def linear(self, name: str, x: str) -> str:
        """A linear layer with its bias."""
        return self.node("Add", self.matmul(name, x), self.weight(f"{name}.bias", self.weights[f"{name}.bias"]))

    def add_and_norm(self, x: str, projection: str, y: str, norm: str) -> tuple[str, str]:
        """x + projection(y), and the LayerNorm of this sum. One node adds the bias, sums and normalises."""
        total = f"sum_{len(self.nodes)}"
        y = self.matmul(projection, y)
        bias = self.weight(f"{projection}.bias", self.weights[f"{projection}.bias"])
        inputs = (x, y, *self.parts(norm), bias)
        outputs = ["", "", total]
        return total, self.node("SkipLayerNormalization", *inputs, outputs=outputs, domain=CONTRIB, epsilon=1e-5)

    def attention(self, layer: int, x: str) -> str:
        """Causal attention of a layer; reads and extends the cache of the layer."""
        c = self.config
        self._pad_heads(f"h.{layer}.attn")
        names = [f"key_{layer}", f"value_{layer}"]
        shape: list[str | int | None] = ["B", c.n_head, c.block_size, self.padded]
        for kind, values in (("past", self.inputs), ("present", self.outputs)):
            values += [helper.make_tensor_value_info(f"{kind}_{name}", TensorProto.FLOAT, shape) for name in names]
        return self.node(
            "GroupQueryAttention",
            *(self.matmul(f"h.{layer}.attn.c_attn", x), "", ""),
            *(*(f"past_{name}" for name in names), "last_position", "length"),
            outputs=[f"present_{name}" for name in names],
            domain=CONTRIB,
            num_heads=c.n_head,
            kv_num_heads=c.n_head,
            scale=float(c.scale),
        )

    def _pad_heads(self, attention: str) -> None:
        """Pad each head with zeros to `padded_head_size`. The zeros do not change the result."""
        c, hs = self.config, self.config.n_embd // self.config.n_head
        if self.padded > hs:
            qkv = self.weights[f"{attention}.c_attn.weight"].reshape(3 * c.n_head, hs, c.n_embd)
            qkv = np.pad(qkv, ((0, 0), (0, self.padded - hs), (0, 0)))
            out = self.weights[f"{attention}.c_proj.weight"].reshape(c.n_embd, c.n_head, hs)
            out = np.pad(out, ((0, 0), (0, 0), (0, self.padded - hs)))
            self.weights[f"{attention}.c_attn.weight"] = qkv.reshape(-1, c.n_embd)
            self.weights[f"{attention}.c_proj.weight"] = out.reshape(c.n_embd, -1)

    def finish(self, logits: str) -> onnx.ModelProto:
        """The complete graph, with its weights inside. logits: name of the result."""
        self.nodes.append(helper.make_node("Identity", [logits], ["logits"]))
        graph = helper.make_graph(self.nodes, "chargpt", self.inputs, self.outputs)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, CONTRIB_OPSET)]
        made = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="chargpt")
        for name, array in self.used.items():  # added last, because the functions above copy their arguments
            made.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return made
