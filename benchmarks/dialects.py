"""Is the dialect of legacy weights found? Checkpoints of all four dialects, of random sizes and lengths of training.

    python benchmarks/dialects.py 0 200               # after `dvc repro prepare`; 15 minutes on two cores

Each is trained as the legacy system trained, by the tests' independent copy of its arithmetic, from 50 updates on. Then
the dialect is looked for as `chargpt migrate` does. A checkpoint is right, wrong, or
refused: as unsure, because the losses are too close, or as untrained, which is worse than character pairs.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

BUCKETS = (50, 100, 200, 500, 1000, 2001)  # updates
VERDICTS = ("right", "unsure", "untrained", "wrong")


def checkpoint(number: int) -> dict[str, Any]:
    """Train one checkpoint and look for its dialect."""
    import torch
    from torch.nn import functional as F

    from chargpt.legacy.dialect import DoesNotFitCorpus, choose_dialect, weigh_dialects
    from chargpt.legacy.directory import LegacyWeights, rename
    from chargpt.model.config import DIALECTS
    from chargpt.text.tokens import read_tokens
    from chargpt.text.vocab import Vocab
    from tests.legacy.reference import LegacyModel

    torch.set_num_threads(1)
    torch.manual_seed(number)
    draw = random.Random(number)
    vocab = Vocab.load("artifacts/vocab.json")
    train_ids, val_ids = read_tokens("data/tokens.safetensors", vocab)
    dialect = DIALECTS[number % 4]
    n_head, head_size = draw.choice([2, 2, 3, 4, 6]), draw.choice([4, 8, 12, 16])
    n_layer, block_size, batch_size = (
        draw.choice([1, 2, 3, 4]),
        draw.choice([8, 16, 32, 64]),
        draw.choice([4, 8, 16, 32]),
    )
    steps, lr = round(50 * 40 ** draw.random()), 10 ** draw.uniform(-3.5, -2)
    sizes = {"vocab_size": len(vocab), "block_size": block_size, "n_layer": n_layer, "n_head": n_head}
    sizes |= {"n_embd": n_head * head_size, "dropout": 0.0}
    model = LegacyModel(len(vocab), block_size, n_head * head_size, n_head, n_layer, dialect)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    text = torch.from_numpy(train_ids.astype("int64"))
    for _ in range(steps):
        windows = text[torch.randint(len(text) - block_size, (batch_size, 1)) + torch.arange(block_size + 1)]
        optimizer.zero_grad()
        F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()).backward()
        optimizer.step()
    weights = LegacyWeights(sizes, rename({name: t.numpy() for name, t in model.state_dict().items()}, sizes))
    found = weigh_dialects(weights, [val_ids, train_ids])
    try:
        verdict = "right" if choose_dialect(found) == dialect else "wrong"
    except DoesNotFitCorpus:
        verdict = "untrained" if min(found.losses.values()) >= found.from_pairs else "unsure"
    about = (
        f"{n_layer} layers, {n_head} heads of {head_size}, context {block_size}, {steps} x {batch_size}, lr {lr:.4f}"
    )
    return {
        "verdict": verdict,
        "steps": steps,
        "about": f"{number}: {dialect}: {about}: {found}",
        "read": found.characters,
    }


def main() -> None:
    first, last = (int(word) for word in (sys.argv[1:] or ["0", "200"]))
    numbers = range(first, last)
    found = []
    with ProcessPoolExecutor(2) as pool:
        for result in pool.map(checkpoint, numbers):
            found.append(result)
            if result["verdict"] != "right":
                print(f"{result['verdict']:<10}{result['about']}", flush=True)
    print(f"\n{'updates':<14}" + "".join(f"{verdict:>11}" for verdict in VERDICTS))
    for low, high in pairwise(BUCKETS):
        counts = Counter(result["verdict"] for result in found if low <= result["steps"] < high)
        print(f"{f'{low} to {high - 1}':<14}" + "".join(f"{counts[verdict]:>11}" for verdict in VERDICTS))
    more = sum(result["read"] > 10_000 for result in found)
    print(f"{more} of {len(found)} needed more than 10,000 characters")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
