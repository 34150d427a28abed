"""Export a model as an ONNX graph of standard operators, with the inputs and outputs that transformers.js expects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from chargpt.errors import ChargptError
from chargpt.export.layout import Floats, gpt2_layout
from chargpt.files import atomic_write
from chargpt.model.file import ModelFile

OPSET, IR_VERSION = 17, 8  # the oldest with the operator LayerNormalization
LARGEST = 1_900_000_000  # bytes of weights; an ONNX file that contains its weights is limited to 2 GiB
MASKED = -1e9  # added to the score of a position that must not be seen


def save_onnx(model: ModelFile, path: str | Path) -> None:
    """Write a model as one .onnx file.

    The inputs and outputs are those of `gpt2_graph`. The metadata holds the characters, as `vocab`, and `block_size`.
    Raises ChargptError if the weights do not fit into one file.
    """
    tensors, config = gpt2_layout(model, path, 0)
    if not fits(tensors):
        raise ChargptError(f"{path}: not written: the weights exceed the 2 GiB of a .onnx file; export to a directory")
    graph = gpt2_graph(tensors, config)
    helper.set_model_props(graph, {"vocab": "".join(model.vocab.itos), "block_size": str(model.config.block_size)})
    write_onnx(graph, path)


def write_onnx(graph: onnx.ModelProto, path: str | Path) -> None:
    """Write a graph; the same graph gives the same bytes."""
    with atomic_write(path) as file:
        file.write(graph.SerializeToString(deterministic=True))


def fits(tensors: Mapping[str, Floats]) -> bool:
    """Whether the weights fit into one ONNX file."""
    return sum(t.nbytes for t in tensors.values()) < LARGEST


def gpt2_graph(tensors: Mapping[str, Floats], config: Mapping[str, Any]) -> onnx.ModelProto:
    """GPT-2 as an ONNX graph that reads S characters of each of B texts, after P characters read before.

    tensors, config: as `gpt2_layout` returns them.
    Inputs: input_ids (B, S) int64; attention_mask (B, P + S) int64, 0 for positions that are not to be seen;
    position_ids (B, S) int64; past_key_values.I.key and .value (B, n_head, P, head size) float32, for layer I.
    Outputs: logits (B, S, vocab_size) float32; present.I.key and .value (B, n_head, P + S, head size).
    Source of the names: Hugging Face Optimum.
    """
    graph = _Graph(tensors, config)
    node, value, floats = graph.node, helper.make_tensor_value_info, TensorProto.FLOAT
    given = (("input_ids", "S"), ("attention_mask", "P + S"), ("position_ids", "S"))
    inputs = [value(name, TensorProto.INT64, ["B", length]) for name, length in given]
    outputs = [value("logits", floats, ["B", "S", config["vocab_size"]])]
    nh, head_size = config["n_head"], config["n_embd"] // config["n_head"]
    for name in (f"{i}.{kind}" for i in range(config["n_layer"]) for kind in ("key", "value")):
        inputs.append(value(f"past_key_values.{name}", floats, ["B", nh, "P", head_size]))
        outputs.append(value(f"present.{name}", floats, ["B", nh, "P + S", head_size]))
    mask = graph.mask()
    characters = node("Gather", graph.weight("wte.weight"), "input_ids")
    positions = node("Gather", graph.weight("wpe.weight"), "position_ids")
    x = node("Add", characters, positions)
    for i in range(config["n_layer"]):
        x = node("Add", x, graph.attention(i, graph.layer_norm(f"h.{i}.ln_1", x), mask))
        hidden = graph.activation(graph.linear(f"h.{i}.mlp.c_fc", graph.layer_norm(f"h.{i}.ln_2", x)))
        x = node("Add", x, graph.linear(f"h.{i}.mlp.c_proj", hidden))
    head = graph.constant(tensors["lm_head.weight"].T, "lm_head.weight")
    node("MatMul", graph.layer_norm("ln_f", x), head, outputs=["logits"])
    made = helper.make_graph(graph.nodes, "chargpt", inputs, outputs)
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(made, opset_imports=[opset], ir_version=IR_VERSION, producer_name="chargpt")
    for name, array in graph.constants.items():  # added last, because the functions above copy their arguments
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return model


class _Graph:
    """A graph under construction. Each method adds nodes or constants and returns the name of its result."""

    def __init__(self, tensors: Mapping[str, Floats], config: Mapping[str, Any]) -> None:
        self.tensors, self.config = tensors, config
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}

    def node(self, kind: str, *inputs: str, outputs: Sequence[str] = (), **attributes: Any) -> str:
        """Add a node and return the name of its first output."""
        names = list(outputs) or [f"{kind}_{len(self.nodes)}"]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names[0]

    def constant(self, value: float | list[int] | NDArray[Any], name: str = "") -> str:
        """Add an array, an integer, a list of integers, or a number as float32."""
        name = name or f"constant_{len(self.constants)}"
        self.constants[name] = np.array(value, np.float32) if isinstance(value, float) else np.asarray(value)
        return name

    def weight(self, name: str) -> str:
        """Add a weight of the model."""
        return self.constant(self.tensors[f"transformer.{name}"], name)

    def linear(self, name: str, x: str) -> str:
        """A linear layer."""
        return self.node("Add", self.node("MatMul", x, self.weight(f"{name}.weight")), self.weight(f"{name}.bias"))

    def layer_norm(self, name: str, x: str) -> str:
        """A LayerNorm."""
        parts = [self.weight(f"{name}.{part}") for part in ("weight", "bias")]
        return self.node("LayerNormalization", x, *parts, epsilon=self.config["layer_norm_epsilon"])

    def activation(self, x: str) -> str:
        """ReLU, or GELU: x/2 (1 + erf(x / sqrt(2)))."""
        if self.config["activation_function"] == "relu":
            return self.node("Relu", x)
        half, one, root = map(self.constant, (0.5, 1.0, 0.5**0.5))
        share = self.node("Add", self.node("Erf", self.node("Mul", x, root)), one)
        return self.node("Mul", self.node("Mul", x, half), share)

    def mask(self) -> str:
        """What is added to attention scores, (B, 1, S, P + S): 0 for positions that are seen, otherwise MASKED."""

        def length(name: str) -> str:
            return self.node("Gather", self.node("Shape", name), self.constant(1))

        zero, one = self.constant(0), self.constant(1)
        total = length("attention_mask")
        keys = self.node("Range", zero, total, one)
        queries = self.node("Range", self.node("Sub", total, length("input_ids")), total, one)
        future = self.node("Greater", keys, self.node("Unsqueeze", queries, self.constant([1])))
        given = self.node("Unsqueeze", "attention_mask", self.constant([1, 2]))
        hidden = self.node("Or", self.node("Equal", given, zero), future)
        return self.node("Where", hidden, self.constant(MASKED), self.constant(0.0))

    def attention(self, layer: int, x: str, mask: str) -> str:
        """Causal attention of a layer; reads and extends the cache of the layer."""
        nh, width = self.config["n_head"], self.config["n_embd"]
        name, kinds = f"h.{layer}.attn", ("query", "key", "value")
        parts = [f"{name}.{kind}" for kind in kinds]
        self.node("Split", self.linear(f"{name}.c_attn", x), outputs=parts, axis=-1)
        heads = [self.node("Reshape", part, self.constant([0, 0, nh, width // nh])) for part in parts]
        q, *new = (self.node("Transpose", part, perm=[0, 2, 1, 3]) for part in heads)
        k, v = (
            self.node("Concat", f"past_key_values.{layer}.{kind}", x, outputs=[f"present.{layer}.{kind}"], axis=2)
            for kind, x in zip(kinds[1:], new, strict=True)
        )
        scale = self.constant((width // nh) ** -0.5)
        scores = self.node("MatMul", self.node("Mul", q, scale), self.node("Transpose", k, perm=[0, 1, 3, 2]))
        weights = self.node("Softmax", self.node("Add", scores, mask), axis=-1)
        y = self.node("Transpose", self.node("MatMul", weights, v), perm=[0, 2, 1, 3])
        return self.linear(f"{name}.c_proj", self.node("Reshape", y, self.constant([0, 0, width])))
