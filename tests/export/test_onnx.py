from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from chargpt.errors import ChargptError
from chargpt.export.huggingface import export
from chargpt.export.layout import gpt2_layout
from chargpt.export.onnx import gpt2_graph, save_onnx
from chargpt.inference.sampling import Sampling, generate
from chargpt.model.config import GPTConfig
from chargpt.model.gpt import GPT
from chargpt.text.vocab import Vocab
from tests.conftest import model_file, random_model
from tests.pipeline import ROOT

CONFIGS = [
    GPTConfig(11, 8, 2, 2, 16),
    GPTConfig(11, 8, 2, 2, 16, dropout=0.5, activation="relu", attention_scale="embedding"),
    GPTConfig(11, 8, 1, 3, 9, attention_scale="embedding"),  # wider in GPT-2's layout
    GPTConfig(2, 8, 1, 1, 1),
]


class Session:
    """A graph in ONNX Runtime, with its cache."""

    def __init__(self, graph: bytes, batch_size: int) -> None:
        self.session = onnxruntime.InferenceSession(graph)
        shapes = {i.name: i.shape for i in self.session.get_inputs() if i.name.startswith("past")}
        self.past = {name: np.zeros((batch_size, s[1], 0, s[3]), np.float32) for name, s in shapes.items()}
        self.mask = np.zeros((batch_size, 0), np.int64)

    def read(
        self, idx: NDArray[np.int64], mask: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        self.mask = np.concatenate([self.mask, mask], axis=1)
        given = {"input_ids": idx, "attention_mask": self.mask, "position_ids": positions}
        logits, *present = self.session.run(None, given | self.past)
        self.past = dict(zip(self.past, present, strict=True))
        return logits


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("chunks", [[8], [1] * 8, [5, 1, 2]])
def test_the_graph_computes_the_logits_of_the_model(config: GPTConfig, chunks: list[int]) -> None:
    """Its tokens that are no characters are impossible."""
    model = random_model(config)
    idx = torch.randint(0, config.vocab_size, (3, 8), generator=torch.Generator().manual_seed(1))
    tensors, about = gpt2_layout(model_file(model), "model.onnx", 3)
    graph = gpt2_graph(tensors, about)
    onnx.checker.check_model(graph, full_check=True)
    assert {o.domain: o.version for o in graph.opset_import} == {"": 17}
    session, read = Session(graph.SerializeToString(), 3), 0
    for size in chunks:
        part, positions = idx[:, read : read + size].numpy(), np.tile(np.arange(read, read + size), (3, 1))
        logits = session.read(part, np.ones_like(part), positions)
        expected = model(idx)[:, read : read + size].detach().numpy()
        np.testing.assert_allclose(logits[..., : config.vocab_size], expected, rtol=0, atol=2e-5)
        assert logits[..., config.vocab_size :].max() < -1e4 + 10
        read += size


def test_left_padding_is_masked(model: GPT) -> None:
    """As transformers.js gives several texts at once."""
    tensors, about = gpt2_layout(model_file(model), "model.onnx", 0)
    graph = gpt2_graph(tensors, about).SerializeToString()
    alone, padded = Session(graph, 1), Session(graph, 1)
    ids = np.array([[3, 1, 4]])
    expected = alone.read(ids, np.ones_like(ids), np.arange(3)[None])[:, -1]
    ids, mask = np.array([[0, 0, 3, 1, 4]]), np.array([[0, 0, 1, 1, 1]])
    logits = padded.read(ids, mask, np.array([[1, 1, 0, 1, 2]]))
    np.testing.assert_allclose(logits[:, -1], expected, atol=1e-5)
    expected, logits = (session.read(np.array([[5]]), np.array([[1]]), np.array([[3]])) for session in (alone, padded))
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_the_example_in_the_docs_generates_the_same_text(tmp_path: Path) -> None:
    """The file is reproducible, and runs in ONNX Runtime without chargpt."""
    model, vocab = random_model(GPTConfig(11, 8, 2, 2, 16)), Vocab("\nabcdefghij")
    for name in ("model.onnx", "again.onnx"):
        save_onnx(model_file(model, vocab), tmp_path / name)
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()
    page = (ROOT / "docs/engines.md").read_text(encoding="utf-8")
    example = page.split("## ONNX Runtime")[1].split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True)
    expected = generate(model, [vocab.encode("\n")], 8, Sampling(temperature=0))[0]
    assert done.stdout == vocab.decode(expected) + "\n", done.stderr


def test_a_model_too_large_for_a_graph(model: GPT, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is refused as a file. In a directory the graph is left out, and that of an earlier export goes."""
    export(model_file(model), tmp_path / "hf")
    assert (tmp_path / "hf/onnx/model.onnx").exists()
    monkeypatch.setattr("chargpt.export.onnx.LARGEST", 1000)
    with pytest.raises(ChargptError, match=r"the weights exceed the 2 GiB of a \.onnx file"):
        save_onnx(model_file(model), tmp_path / "model.onnx")
    for name in ("hf", "new"):
        export(model_file(model), tmp_path / name)
        assert not list(tmp_path.rglob("*.onnx"))
