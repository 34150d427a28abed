"""Make data/legacy/weights: a small model trained as the legacy system trained, saved as it saved.

    python -m tests.legacy.make_legacy TEXT

Oldest dialect (ReLU, attention scaled by the whole width), random windows, AdamW at a constant rate.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

from tests.legacy.reference import LegacyModel, write_legacy

OUTPUT = Path("data/legacy")
CONFIG = json.loads((OUTPUT / "config.json").read_text())


def main(corpus: str) -> None:
    text = Path(corpus).read_text(encoding="utf-8")
    stoi = {c: i for i, c in enumerate(sorted(set(text)))}
    data = torch.tensor([stoi[c] for c in text])
    splits = {"train": data[: int(0.9 * len(data))], "val": data[int(0.9 * len(data)) :]}
    torch.manual_seed(1337)
    sizes = (len(stoi), CONFIG["block_size"], CONFIG["n_embd"], CONFIG["n_head"], CONFIG["n_layer"])
    model = LegacyModel(*sizes, "relu-embedding")
    optimizer = torch.optim.AdamW(model.parameters(), lr=CONFIG["learning_rate"])

    def batch_loss(split: str) -> torch.Tensor:
        ids = splits[split]
        starts = torch.randint(len(ids) - CONFIG["block_size"], (CONFIG["batch_size"], 1))
        windows = ids[starts + torch.arange(CONFIG["block_size"] + 1)]
        return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())

    for step in range(CONFIG["max_iters"]):
        if step % CONFIG["eval_interval"] == 0:
            with torch.no_grad():
                losses = [torch.stack([batch_loss(s) for _ in range(CONFIG["eval_iters"])]).mean() for s in splits]
            print(f"step {step}: train {losses[0]:.4f} val {losses[1]:.4f}")
        optimizer.zero_grad()
        batch_loss("train").backward()
        optimizer.step()
    write_legacy(OUTPUT / "weights", {name: t.numpy() for name, t in model.state_dict().items()})


if __name__ == "__main__":
    main(sys.argv[1])
