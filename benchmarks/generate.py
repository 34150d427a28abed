"""Characters per second: naive generation, transformers, CTranslate2 and llama.cpp on the exported model, and ours.

    python benchmarks/generate.py            # needs the extras test and engines; some minutes

A model of random weights: 4 layers, 4 heads, 128 wide, context 256, float32. For each batch size and length all run one
after another, several times; the figures are medians, the ratios medians of the ratios within a round. What a call
costs once (preparing the decoder, allocating the cache) is on its clock; loading a file into another engine is not.
The other engines run with one thread and with two, and the better counts; CTranslate2 also with two workers, each for
half of the texts. They end with the context.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctranslate2
import torch
import transformers
import xllamacpp

from chargpt.export.gguf import save_gguf
from chargpt.export.huggingface import export
from chargpt.inference.sampling import generate
from chargpt.model.config import GPTConfig
from chargpt.model.file import ModelFile
from chargpt.model.gpt import GPT
from chargpt.text.vocab import Vocab

CONTEXT = 256
ROUNDS = 5
PAUSE_S = 0.5  # threads of the engine before wait for work in a loop, which would slow down the next one
INSIDE, PAST = 250, 1000
VOCAB = Vocab([chr(40 + i) for i in range(65)])
Way = Callable[[int, int], None]  # texts, characters of each


def ctranslate2_way(folder: Path, workers: int, threads: int) -> Way:
    engine = ctranslate2.Generator(
        str(folder / "ct2"), device="cpu", inter_threads=workers, intra_threads=threads, compute_type="float32"
    )

    def run(batch_size: int, length: int) -> None:
        texts = engine.generate_batch(
            [[VOCAB.itos[0]]] * batch_size,
            max_batch_size=-(-batch_size // workers),
            max_length=length,
            min_length=length,
            sampling_topk=0,
            include_prompt_in_result=False,
        )
        assert all(len(text.sequences[0]) == length for text in texts)

    return run


def llama_way(folder: Path, threads: int) -> Way:
    options: Any = xllamacpp.CommonParams()
    options.model.path = str(folder / "model.gguf")
    options.n_ctx, options.n_parallel, options.warmup = CONTEXT, 1, True
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(options)

    def run(batch_size: int, length: int) -> None:
        request = {"prompt": VOCAB.itos[0], "max_tokens": length, "temperature": 1, "cache_prompt": False}
        answer = server.handle_completions(request)
        assert answer["usage"]["completion_tokens"] == length, answer

    return run


def main() -> None:
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    model = GPT(GPTConfig(65, CONTEXT, 4, 4, 128)).eval()
    folder = Path(tempfile.mkdtemp())
    file = ModelFile(model.config, VOCAB, model.arrays())
    export(file, folder / "hf")
    save_gguf(file, folder / "model.gguf")
    ctranslate2.converters.TransformersConverter(str(folder / "hf")).convert(str(folder / "ct2"))
    other = transformers.AutoModelForCausalLM.from_pretrained(folder / "hf").eval()

    @torch.no_grad()
    def naive(idx: torch.Tensor, n: int) -> None:
        for _ in range(n):
            logits = model(idx[:, -CONTEXT:])[:, -1]
            idx = torch.cat([idx, torch.multinomial(logits.softmax(-1), 1)], 1)

    def theirs(batch_size: int, n: int) -> None:
        """Its cache ends with the context: past it, the last half is given again as a prompt."""
        idx = torch.zeros(batch_size, 1, dtype=torch.int64)
        while n:
            part = min(n, CONTEXT - idx.size(1))
            idx = other.generate(
                idx,
                max_new_tokens=part,
                min_new_tokens=part,
                do_sample=True,
                top_k=0,
                pad_token_id=0,
                attention_mask=torch.ones_like(idx),
            )
            n -= part
            idx = idx[:, -CONTEXT // 2 :]

    def ours(batch_size: int, n: int) -> None:
        generate(file, [[0]] * batch_size, n)

    engines: dict[str, dict[str, Way]] = {
        "CTranslate2": {f"{threads}": ctranslate2_way(folder, 1, threads) for threads in (1, 2)},
        "its workers": {"2": ctranslate2_way(folder, 2, 1)},
        "llama.cpp": {f"{threads}": llama_way(folder, threads) for threads in (1, 2)},
    }
    ours(16, 2)  # compiles
    names = ["naive", "transformers", *engines, "ours"]
    print(f"{'batch':>6}{'length':>8}" + "".join(f"{name:>14}" for name in names), end="")
    print("".join(f"{'/ ' + name:>16}" for name in names[:-1]) + "   best settings")
    for batch_size in (1, 16, 64):
        for length in (INSIDE, PAST):
            ways: dict[str, tuple[str, Way]] = {"transformers 1": ("transformers", theirs), "ours 1": ("ours", ours)}
            if length == INSIDE:
                ways |= {f"{e} {s}": (e, way) for e, all_of_it in engines.items() for s, way in all_of_it.items()}
            if batch_size > 1:
                ways = {key: way for key, way in ways.items() if way[0] != "llama.cpp"}
            rates: dict[str, list[float]] = {key: [] for key in ways}
            rates["naive 1"] = []
            for _ in range(ROUNDS):
                for key, (_, run) in ways.items():
                    time.sleep(PAUSE_S)
                    started = time.perf_counter()
                    run(batch_size, length)
                    rates[key].append(batch_size * length / (time.perf_counter() - started))
                # naive costs the same per character once the context is full; before, as much as at its mean length
                prompt = torch.zeros(batch_size, CONTEXT if length == PAST else 125, dtype=torch.int64)
                n = 40
                started = time.perf_counter()
                naive(prompt, n)
                rates["naive 1"].append(batch_size * n / (time.perf_counter() - started))
            best: dict[str, str] = {}
            for key, values in rates.items():
                name = key.rsplit(" ", 1)[0]
                if name not in best or statistics.median(values) > statistics.median(rates[best[name]]):
                    best[name] = key
            figures = "".join(
                f"{statistics.median(rates[best[name]]):>14,.0f}" if name in best else f"{'-':>14}" for name in names
            )
            ratios = "".join(
                f"{statistics.median(a / b for a, b in zip(rates['ours 1'], rates[best[n]], strict=True)):>16.2f}"
                if n in best
                else f"{'-':>16}"
                for n in names[:-1]
            )
            settings = ", ".join(best[name] for name in engines if name in best)
            print(f"{batch_size:>6}{length:>8}{figures}{ratios}   {settings}", flush=True)


if __name__ == "__main__":
    main()
