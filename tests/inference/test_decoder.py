from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from chargpt.evaluation.curve import Row
from chargpt.evaluation.page import make_report
from chargpt.inference import kernel
from chargpt.inference.decoder import CompiledDecoder, TorchDecoder, make_decoder, place
from chargpt.inference.sampling import Random, Sampling, generate, generate_each, stream
from chargpt.model.config import GPTConfig
from chargpt.model.file import save_model
from chargpt.model.gpt import GPT
from chargpt.text.vocab import Vocab
from tests.conftest import chargpt, model_file, random_model
from tests.pipeline import ROOT

CONFIGS = [
    GPTConfig(11, 8, 2, 2, 16),
    GPTConfig(11, 8, 2, 2, 16, dropout=0.5, activation="relu", attention_scale="embedding"),
    GPTConfig(11, 8, 1, 3, 9, attention_scale="embedding"),  # no width is a multiple of 4
    GPTConfig(40, 75, 3, 1, 7),  # a context that is no multiple of 32
    GPTConfig(11, 16, 2, 4, 4),  # heads of one unit
    GPTConfig(2, 8, 1, 1, 1),
]


def used_cache(config: GPTConfig, batch_size: int) -> kernel.Cache:
    """With anything in it."""
    cache = kernel.new_cache(config, batch_size)
    for part in cache:
        part[...] = np.nan
    return cache


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("chunks", [[8], [1] * 8, [5, 1, 2], [1, 7]])
def test_both_decoders_compute_the_logits_of_the_model(config: GPTConfig, batch_size: int, chunks: list[int]) -> None:
    model = random_model(config)
    idx = torch.randint(0, config.vocab_size, (batch_size, 8), generator=torch.Generator().manual_seed(1))
    full = model(idx).detach().numpy()
    cache, read = used_cache(config, batch_size), 0
    torch_decoder = TorchDecoder(model, batch_size)
    for part in np.split(idx.numpy(), np.cumsum(chunks)[:-1], axis=1):
        part = np.ascontiguousarray(part)
        starts, weights = np.full(batch_size, read), kernel.prepare(config, model.arrays())
        logits = kernel.read(weights, cache, part, starts)
        read += part.shape[1]
        np.testing.assert_allclose(logits, full[:, read - 1], rtol=0, atol=1e-5)
        np.testing.assert_allclose(torch_decoder.read(part), full[:, read - 1], rtol=0, atol=1e-5)


def test_exp_and_gelu_are_exact_within_their_bounds() -> None:
    x = np.linspace(-86, 0, 100_001, dtype=np.float32)
    powers = np.array([kernel.exp(value) for value in x], np.float64)
    assert np.abs(powers / np.exp(x.astype(np.float64)) - 1).max() < 3e-7
    assert kernel.exp(np.float32(-1e30)) < 1e-37
    row = np.linspace(-10, 10, 100_001, dtype=np.float32)
    expected = F.gelu(torch.from_numpy(row).double()).numpy()
    bound = 3e-7 * np.maximum(np.abs(row), 1e-30)
    kernel.gelu(row)
    assert (np.abs(row - expected) <= bound).all()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0), Sampling(2.0, 3, 0.9)])
def test_both_decoders_generate_the_same_text(
    config: GPTConfig, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the context too, for more texts than are read together."""
    model, idx = random_model(config), torch.zeros(6, 2, dtype=torch.int64)
    texts = []
    for decoder in (make_decoder, TorchDecoder):
        monkeypatch.setattr("chargpt.inference.sampling.make_decoder", decoder)
        texts.append(generate(model, idx, 40, sampling, Random(1)))
    assert np.array_equal(*texts)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_text_does_not_depend_on_batch_or_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On any number of threads. With so wide a model, a difference in the last bit shows in some text."""
    model = random_model(GPTConfig(50, 32, 2, 2, 36))
    alone = [generate(model, [[i]], 60, Sampling(temperature=0))[0] for i in range(11)]
    monkeypatch.setattr("numba.config.NUMBA_NUM_THREADS", threads)
    together = generate(model, np.arange(11)[:, None], 60, Sampling(temperature=0))
    assert np.array_equal(alone, together)


def test_generate_uses_the_current_weights(model: GPT) -> None:
    generate(model, torch.tensor([[1]]), 5)
    with torch.no_grad():
        model.lm_head.bias[3] = 100
    assert generate(model, torch.tensor([[1]]), 5).tolist() == [[1, 3, 3, 3, 3, 3]]


def test_a_model_is_packed_once_for_several_texts(
    model: GPT, vocab: Vocab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command, for the prompts of `generate_each`, and for the report."""
    calls = []
    prepare = kernel.prepare
    monkeypatch.setattr("chargpt.inference.decoder.prepare", lambda *arguments: calls.append(1) or prepare(*arguments))
    save_model(tmp_path / "model.safetensors", model, vocab)
    options = ["--model", "model.safetensors", "--max-tokens", "20", "--seed", "1", "--num-samples", "3"]
    written = chargpt("generate", *options, cwd=tmp_path)
    assert len(calls) == 1, written.stderr
    random, prompt = Random(1), vocab.encode("\n")
    texts = [vocab.decode(generate(model, [prompt], 20, Sampling(0.8), random)[0].tolist()) for _ in range(3)]
    assert written.stdout == "\n".join(f"=== sample {i} ===\n{text}\n" for i, text in enumerate(texts, start=1))
    calls.clear()
    generate_each(model, [[1], [1, 2], [1, 2, 3]], 5)
    assert len(calls) == 1
    calls.clear()
    ids = np.arange(50, dtype=np.uint8) % len(vocab)
    make_report(model_file(model, vocab), ids, ids, [Row(0, 3.0, 3.1, 0.0)])
    assert len(calls) == 1


def test_torch_decoder_runs_without_dropout_and_restores_the_mode() -> None:
    model = random_model(GPTConfig(11, 8, 1, 2, 8, dropout=0.5)).train()
    idx = np.array([[1, 2, 3]])
    first, second = (TorchDecoder(model, 1).read(idx) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, model.eval()(torch.from_numpy(idx))[:, -1].detach(), atol=1e-5)
    model.train()
    TorchDecoder(model, 1).read(idx)
    assert model.training


def test_the_decoder_follows_device_and_model_size(model: GPT, vocab: Vocab, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `auto`, a small model stays on the processor, without torch."""
    file = model_file(model, vocab)
    assert isinstance(make_decoder(file, 1), CompiledDecoder)
    assert isinstance(make_decoder(model, 1), CompiledDecoder)
    assert isinstance(make_decoder(GPT(model.config).to("meta"), 1), TorchDecoder)
    monkeypatch.setattr("chargpt.device.pick_device", lambda device: torch.device("meta"))
    for small, device, in_torch in (
        (True, "auto", False),
        (False, "auto", True),
        (False, "cpu", False),
        (True, "cuda", True),
    ):
        monkeypatch.setattr("chargpt.inference.decoder.SMALL", model.config.parameters - (not small))
        assert isinstance(make_decoder(place(file, device), 1), TorchDecoder) == in_torch, device


def test_stream_and_generate_choose_pieces_by_model_size(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole text is generated in larger ones. Both write the same."""
    pieces = []

    def extend(self: CompiledDecoder, unread: Any, start: int, uniform: Any, choice: Any) -> Any:
        pieces.append(len(uniform))
        return original(self, unread, start, uniform, choice)

    original = CompiledDecoder.extend
    monkeypatch.setattr(CompiledDecoder, "extend", extend)
    monkeypatch.setattr("chargpt.inference.sampling.SHOWN", 3 * model.config.parameters + 1)
    shown = [int(ids[0]) for ids in stream(model, [[1]], 7, random=Random(1))]
    assert pieces == [3, 3, 1]
    assert generate(model, [[1]], 7, random=Random(1)).tolist() == [[1, *shown]]
    assert pieces == [3, 3, 1, 7]
    monkeypatch.setattr("chargpt.inference.sampling.SHOWN", 1)
    assert len(list(stream(model, [[1]], 2))) == 2
    assert pieces[4:] == [1, 1]


LOOPS = """
from chargpt.inference.compiled import compiled

@compiled
def total(n):
    sum = 0
    for i in range(n):
        sum += i
    return sum
"""
COMPILES = "compiling the generator for this machine, once: some 5 seconds\n"


def total(folder: Path, cache: Path, before: str = "") -> str:
    """What a new process says that calls the loops in a folder."""
    (folder / "loops.py").write_text(LOOPS)
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT)}
    command = [*before.split(), sys.executable, "-c", "import loops; print(loops.total(5))"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "10\n"), done.stderr
    return done.stderr


@pytest.mark.system
def test_damaged_or_missing_compiled_code_is_compiled_again(tmp_path: Path) -> None:
    """And repaired: the next process loads the code."""
    assert total(tmp_path, tmp_path, "prlimit --fsize=1000") == COMPILES  # no room on the disk
    assert total(tmp_path, tmp_path) == COMPILES
    index, code = (next(tmp_path.glob(f"numba/chargpt_*/*total*.{kind}")) for kind in ("nbi", "nbc"))
    index.write_bytes(index.read_bytes()[:100])
    code.write_bytes(code.read_bytes()[:3000])
    assert total(tmp_path, tmp_path) == COMPILES
    assert total(tmp_path, tmp_path) == ""
    content = bytearray(code.read_bytes())
    content[len(content) // 2] ^= 1  # in the machine code
    code.write_bytes(content)
    assert total(tmp_path, tmp_path) == COMPILES
    assert total(tmp_path, tmp_path) == ""


@pytest.mark.system
def test_compiled_code_is_shared_between_copies_of_the_project(tmp_path: Path) -> None:
    """It says that it compiles. A copy elsewhere has it ready, and a machine where nothing can be kept works too."""
    here, there, cache, closed = (tmp_path / name for name in ("here", "there", "cache", "closed"))
    here.mkdir()
    there.mkdir()
    closed.write_text("a file where a folder should be")
    assert total(here, cache) == COMPILES
    assert total(there, cache) == ""
    assert len(list(cache.glob("numba/chargpt_*"))) == 1
    assert total(there, closed) == COMPILES


def test_a_switched_off_compiler_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "chargpt", "generate", "--model", "m.safetensors"]
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: NUMBA_DISABLE_JIT is set")
