"""Scored characters per second: torch, transformers, CTranslate2 and llama.cpp on the exported model, and ours.

    python benchmarks/score.py MODEL LINES TEXT   # needs the extras test and engines; some minutes

LINES: 2,000 lines of a log, for example. TEXT: a long text in the model's characters. Other characters of both are left
out, because the other engines refuse them. All run one after another, several times; the figures are medians, the
ratios medians of the ratios within a round. Loading a model is not on the clock. On the lines, transformers and
CTranslate2 run with several batch sizes, lines of similar length together. They end with the context, so a longer line
is cut there, for all. On the text, torch reads windows that do not overlap, as `evaluate` does, which is an eighth less
work than ours: each character of ours sees at least an eighth of the context. llama.cpp decodes the text in such
windows and keeps all logits, as its own program for the perplexity of a file does; it runs if the Python that
LLAMA_PYTHON names has llama-cpp-python.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ctranslate2
import numpy as np
import torch
import transformers
from torch.nn import functional as F

import chargpt
from chargpt.evaluation.loss import evaluate
from chargpt.export.gguf import save_gguf
from chargpt.export.huggingface import export
from chargpt.model.file import load_model, read_model

ROUNDS = 3
BATCHES = (16, 64)
LONG = 100_000  # characters of the text
LLAMA = """
import sys, time
import numpy as np, llama_cpp
model = llama_cpp.Llama(sys.argv[1], n_ctx=int(sys.argv[3]), n_batch=int(sys.argv[3]), logits_all=True, verbose=False,
    n_threads=2, n_threads_batch=2)
ids = np.fromfile(sys.argv[2], np.int64)
def run():
    for k in range(0, len(ids) - 1, int(sys.argv[3])):
        model.reset()
        model.eval(ids[k : k + int(sys.argv[3])].tolist())
run()
started = time.perf_counter()
run()
print(len(ids) / (time.perf_counter() - started))
"""


def main() -> None:
    transformers.logging.set_verbosity_error()
    path = Path(sys.argv[1])
    model, vocab = load_model(path)
    ours, T = chargpt.load(path), model.config.block_size
    known = set(vocab.itos)
    lines = Path(sys.argv[2]).read_text(encoding="utf-8").splitlines()
    lines = ["".join(c for c in line if c in known)[: T - 1] for line in lines]
    text = "".join(c for c in Path(sys.argv[3]).read_text(encoding="utf-8") if c in known)
    text = (text * (LONG // len(text) + 1))[:LONG]
    ids, encoded = vocab.encode_array(text), [[vocab.itos.index("\n"), *vocab.encode(line)] for line in lines]
    ordered = sorted(encoded, key=len)
    folder = Path(tempfile.mkdtemp())
    export(read_model(path), folder / "hf")
    save_gguf(read_model(path), folder / "model.gguf")
    ctranslate2.converters.TransformersConverter(str(folder / "hf")).convert(str(folder / "ct2"))
    other = transformers.AutoModelForCausalLM.from_pretrained(folder / "hf").eval()
    engines = {
        f"{w} x {t}": ctranslate2.Generator(
            str(folder / "ct2"), inter_threads=w, intra_threads=t, compute_type="float32"
        )
        for w, t in ((1, 2), (2, 1))
    }

    @torch.no_grad()
    def padded(batch_size: int) -> float:
        total = 0.0
        for k in range(0, len(ordered), batch_size):
            rows = ordered[k : k + batch_size]
            idx = torch.full((len(rows), len(rows[-1])), -100)
            for i, row in enumerate(rows):
                idx[i, : len(row)] = torch.tensor(row)
            logits = other(idx.clamp(min=0), attention_mask=(idx >= 0).long()).logits[:, :-1]
            total += F.cross_entropy(logits.flatten(0, 1), idx[:, 1:].flatten(), reduction="sum").item()
        return total

    def ct2(engine: ctranslate2.Generator, batch_size: int, rows: list[list[int]]) -> float:
        tokens = [[vocab.itos[i] for i in row] for row in rows]
        found = engine.score_batch(tokens, max_batch_size=batch_size)
        return -sum(sum(row.log_probs) for row in found)

    windows = [ids[k : k + T + 1].tolist() for k in range(0, len(ids) - 1, T)]
    ways: dict[str, dict[str, Callable[[], float]]] = {
        "lines": {"ours": lambda: ours.score(lines).bits.sum() * np.log(2)},
        "text": {
            "ours": lambda: ours.score(text).bits.sum() * np.log(2),
            "torch": lambda: evaluate(model, ids) * (len(ids) - 1),
        },
    }
    for size in BATCHES:
        ways["lines"][f"transformers {size}"] = lambda size=size: padded(size)
        for name, engine in engines.items():
            ways["lines"][f"CTranslate2 {name}, {size}"] = lambda e=engine, size=size: ct2(e, size, ordered)
            ways["text"][f"CTranslate2 {name}, {size}"] = lambda e=engine, size=size: ct2(e, size, windows)
    for kind, several in ways.items():
        count = len(ids) if kind == "text" else sum(map(len, lines))
        rates: dict[str, list[float]] = {name: [] for name in several}
        for _ in range(ROUNDS):
            for name, run in several.items():
                started = time.perf_counter()
                nats = run()
                rates[name].append(count / (time.perf_counter() - started))
                print(f"{kind}: {name}: {nats / count:.4f} nats per character", file=sys.stderr)
        for name, values in rates.items():
            ratio = statistics.median(a / b for a, b in zip(rates["ours"], values, strict=True))
            print(
                f"{kind:<6}{name:<26}{statistics.median(values):>10,.0f} characters a second{ratio:>8.2f}", flush=True
            )
    ids.astype(np.int64).tofile(folder / "ids")
    python = os.environ.get("LLAMA_PYTHON", sys.executable)  # of an environment with llama-cpp-python
    program = [python, "-c", LLAMA, str(folder / "model.gguf"), str(folder / "ids"), str(T)]
    done = subprocess.run(program, capture_output=True, text=True)
    print(f"text  llama.cpp{done.stdout.strip() or ' is not installed':>27}")
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        program = [sys.executable, "-m", "chargpt", "score", "--model", str(path)]
        subprocess.run(program, input=b"a line\n", capture_output=True, check=True)
        times.append(time.perf_counter() - started)
    print(f"one line, from start to end: {statistics.median(times):.2f} s")


if __name__ == "__main__":
    main()
