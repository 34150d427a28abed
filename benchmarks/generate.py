"""Characters per second: naive generation, transformers on the exported model, and ours.

    python benchmarks/generate.py            # needs the test extra; a few minutes

A model of random weights: 4 layers, 4 heads, 128 wide, context 256. For each batch size and length the three run one
after another, several times; the figures are medians, the ratios medians of the ratios within a round. What a call
costs once (preparing the decoder, allocating the cache) is on its clock.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable

import torch
import transformers

from chargpt.export.huggingface import export
from chargpt.model import GPT, GPTConfig
from chargpt.sampling import generate
from chargpt.vocab import Vocab

CONTEXT = 256
ROUNDS = 3
INSIDE, PAST = 250, 1000


def main() -> None:
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    model = GPT(GPTConfig(65, CONTEXT, 4, 4, 128)).eval()
    with tempfile.TemporaryDirectory() as folder:
        export(model, Vocab([chr(40 + i) for i in range(65)]), f"{folder}/hf")
        other = transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/hf").eval()

    @torch.no_grad()
    def naive(idx: torch.Tensor, n: int) -> None:
        for _ in range(n):
            logits = model(idx[:, -CONTEXT:])[:, -1]
            idx = torch.cat([idx, torch.multinomial(logits.softmax(-1), 1)], 1)

    def theirs(idx: torch.Tensor, n: int) -> None:
        """Its cache ends with the context: past it, the last half is given again as a prompt, as we do it."""
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

    def ours(idx: torch.Tensor, n: int) -> None:
        generate(model, idx, n)

    ways: dict[str, Callable[[torch.Tensor, int], None]] = {"naive": naive, "transformers": theirs, "ours": ours}
    print(f"{'batch':>6}{'length':>8}" + "".join(f"{way:>14}" for way in ways) + f"{'/ naive':>10}{'/ theirs':>10}")
    for batch_size in (1, 16, 64):
        for length in (INSIDE, PAST):
            idx = torch.zeros(batch_size, 1, dtype=torch.int64)
            rates: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(ROUNDS):
                for way, run in ways.items():
                    # naive costs the same per character once the context is full: a part of it will do
                    prompt, n = (idx, length) if way != "naive" else (idx.expand(-1, max(1, length - 249)), 40)
                    if way == "naive" and length == INSIDE:
                        prompt, n = idx, INSIDE if batch_size == 1 else 60
                    if way == "naive" and length == INSIDE and batch_size > 1:
                        prompt = idx.expand(-1, 95)  # so that the mean length is that of a whole run
                    started = time.perf_counter()
                    run(prompt, n)
                    rates[way].append(batch_size * n / (time.perf_counter() - started))
            ratios = [
                statistics.median(a / b for a, b in zip(rates["ours"], rates[way], strict=True))
                for way in ("naive", "transformers")
            ]
            medians = [statistics.median(rates[way]) for way in ways]
            figures = "".join(f"{m:>14,.0f}" for m in medians) + "".join(f"{r:>10.1f}" for r in ratios)
            print(f"{batch_size:>6}{length:>8}{figures}", flush=True)


if __name__ == "__main__":
    main()
