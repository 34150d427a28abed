from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from chargpt.decoder import Decoder, OnnxDecoder, TorchDecoder, make_decoder
from chargpt.errors import ChargptError
from chargpt.export.onnx import save_onnx
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
    """As docs/generating.md shows it."""
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


def test_a_model_too_large_for_a_graph_runs_in_torch(
    model: GPT, vocab: Vocab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("chargpt.graph.LARGEST_GRAPH", 1000)
    assert isinstance(make_decoder(model, 1), TorchDecoder)
    with pytest.raises(ChargptError, match=r"one \.onnx file holds 2 GiB"):
        save_onnx(model, vocab, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
