from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from chargpt.decoder import Decoder, OnnxDecoder, TorchDecoder, make_decoder
from chargpt.errors import ChargptError
from chargpt.export.onnx import save_onnx
from chargpt.graph import fits, onnx_model, padded_head_size, weight_bytes
from chargpt.model import GPT, GPTConfig
from chargpt.vocab import Vocab
from tests.conftest import random_model

CONFIGS = [
    GPTConfig(11, 8, 2, 2, 16),
    GPTConfig(11, 8, 2, 2, 16, dropout=0.5, activation="relu", attention_scale="embedding"),
    GPTConfig(11, 8, 1, 3, 9, attention_scale="embedding"),  # a head size that has to be padded
    GPTConfig(2, 8, 1, 1, 1),
]


@pytest.mark.parametrize("kind", [OnnxDecoder, TorchDecoder])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("chunks", [[8], [1] * 8, [5, 1, 2], [1, 7]])
def test_every_prediction_is_the_models(
    kind: type[Decoder], config: GPTConfig, batch_size: int, chunks: list[int]
) -> None:
    model = random_model(config)
    idx = torch.randint(0, config.vocab_size, (batch_size, 8), generator=torch.Generator().manual_seed(1))
    full = model(idx).detach().numpy()
    decoder = kind(model, batch_size)  # type: ignore[call-arg]
    for _ in range(2):
        read = 0
        for part in np.split(idx.numpy(), np.cumsum(chunks)[:-1], axis=1):
            logits = decoder.read(part)
            read += part.shape[1]
            assert decoder.length == read
            np.testing.assert_allclose(logits, full[:, read - 1], rtol=0, atol=1e-5)
        decoder.forget()


def test_a_cpu_gets_onnx_runtime_with_the_weights_of_now(model: GPT) -> None:
    idx = np.array([[1, 2]])
    before = make_decoder(model, 1)
    assert isinstance(before, OnnxDecoder)
    first = before.read(idx).copy()
    with torch.no_grad():
        model.lm_head.bias += 1
    np.testing.assert_allclose(make_decoder(model, 1).read(idx), first + 1, atol=1e-5)


def test_the_torch_decoder_leaves_the_models_mode(model: GPT) -> None:
    model.train()
    TorchDecoder(model, 1).read(np.array([[1]]))
    assert model.training


def test_the_onnx_file_runs_without_us(tmp_path: Path, model: GPT, vocab: Vocab) -> None:
    """As docs/engines.md shows it."""
    save_onnx(model, vocab, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    about = session.get_modelmeta().custom_metadata_map
    assert about["vocab"] == "".join(vocab.itos)
    inputs = {
        i.name: np.zeros([1, *i.shape[1:]], np.float32) for i in session.get_inputs() if i.name.startswith("past")
    }
    ids = [3]
    for position in range(int(about["block_size"])):
        now = {"idx": [[ids[-1]]], "positions": [position]}
        step = {k: np.array(v, np.int64) for k, v in now.items()}
        step |= {"last_position": np.array([position], np.int32), "length": np.array([position + 1], np.int32)}
        logits, *present = session.run(None, inputs | step)
        inputs = dict(zip(inputs, present, strict=True))
        ids.append(int(logits[0, -1].argmax()))
    idx = torch.tensor([ids[:1]])
    for _ in ids[1:]:
        idx = torch.cat([idx, model(idx[:, -8:])[:, -1].argmax(-1, keepdim=True)], 1)
    assert ids == idx[0].tolist()
    again = tmp_path / "again.onnx"
    save_onnx(model, vocab, again)
    assert again.read_bytes() == (tmp_path / "model.onnx").read_bytes()


def threads_of(decoder: Decoder) -> int:
    assert isinstance(decoder, OnnxDecoder)
    return decoder.session.get_session_options().intra_op_num_threads


def test_another_thread_for_each_400_000_weights_of_a_character() -> None:
    """Of the blocks, for all texts of the batch; never more than torch may use, whose number is the user's."""
    model = random_model(GPTConfig(11, 8, 1, 2, 8))
    blocks = sum(p.numel() for name, p in model.named_parameters() if name.startswith("h."))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for batch_size, threads in ((1, 1), (399_999 // blocks, 1), (400_000 // blocks + 1, 2), (9_000, 3)):
            assert threads_of(make_decoder(model, batch_size)) == threads
        torch.set_num_threads(1)
        assert threads_of(make_decoder(model, 9_000)) == 1
    finally:
        torch.set_num_threads(before)


def test_torch_decodes_without_dropout_and_gradients() -> None:
    model = random_model(GPTConfig(11, 8, 1, 2, 8, dropout=0.5)).train()
    idx = np.array([[1, 2, 3]])
    first, second = (TorchDecoder(model, 1).read(idx) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, OnnxDecoder(model, 1).read(idx), atol=1e-5)
    assert model.training


def test_a_model_elsewhere_runs_in_torch(model: GPT) -> None:
    assert isinstance(make_decoder(model.to("meta"), 1), TorchDecoder)


def test_the_largest_graph(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(p.numel() * 4 for p in model.parameters())
    assert weight_bytes(model) == size
    monkeypatch.setattr("chargpt.graph.LARGEST_GRAPH", size)
    assert not fits(model)
    monkeypatch.setattr("chargpt.graph.LARGEST_GRAPH", size + 1)
    assert fits(model)


@pytest.mark.parametrize(("n_embd", "n_head", "padded"), [(1, 1, 8), (16, 2, 8), (18, 2, 16), (64, 1, 64)])
def test_heads_are_padded_to_a_multiple_of_8(n_embd: int, n_head: int, padded: int) -> None:
    assert padded_head_size(GPT(GPTConfig(5, 4, 1, n_head, n_embd))) == padded


def test_a_graph_for_onnx_runtimes_of_several_years(model: GPT) -> None:
    """The oldest opset with Gelu; the file says who made it."""
    made = onnx_model(model)
    assert {o.domain: o.version for o in made.opset_import} == {"": 20, "com.microsoft": 1}
    assert (made.ir_version, made.producer_name) == (9, "chargpt")
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*made.graph.input, *made.graph.output)
    }
    caches = [f"{kind}_{i}" for i in range(2) for kind in ("key", "value")]
    expected: dict[str, list[Any]] = {"idx": ["B", "S"], "positions": ["S"], "last_position": ["B"], "length": [1]}
    expected |= {f"past_{name}": ["B", 2, 8, 8] for name in caches} | {"logits": ["B", "S", 14]}
    expected |= {f"present_{name}": ["B", 2, 8, 8] for name in caches}
    assert list(shapes.items()) == list(expected.items())
    onnx.checker.check_model(made)


def test_a_model_too_large_for_a_graph_runs_in_torch(
    model: GPT, vocab: Vocab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("chargpt.graph.LARGEST_GRAPH", 1000)
    assert isinstance(make_decoder(model, 1), TorchDecoder)
    with pytest.raises(ChargptError, match=r"one \.onnx file holds 2 GiB"):
        save_onnx(model, vocab, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
