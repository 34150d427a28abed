"""Training beside a plain baseline: seconds to a loss, loss at equal time, steps per second.

    python benchmarks/train.py            # after `dvc repro prepare`; about four minutes, one process at a time
    python benchmarks/train.py float32    # ours in float32, also on a CPU that computes in bfloat16
    python benchmarks/train.py --recipes  # instead, the recipes of docs/recipes.md, with the median of three seeds

The baseline follows nanoGPT's recipe for a CPU (karpathy/nanoGPT, README and config/train_shakespeare_char.py): 4
layers, 4 heads, 128 wide, context 64, batch 12, 2,000 steps, AdamW with a cosine, tied embeddings, no biases, an
estimate of both losses on 20 batches every 250 steps. Seconds count from the start of the process; the baseline's
exact loss over the whole validation split, which its recipe does not have, is measured off the clock. Ours is
params.yaml with other sizes and lengths; its evaluations are on the clock.
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TARGET = 1.898  # nats per character: where the baseline ends
QUICK = {"n_head": 2, "weight_decay": 0.1, "lr": 0.02, "block_size": 64, "batch_size": 32, "warmup_iters": 20}
QUICK |= {"max_iters": 210, "eval_interval": 210}
LONG = {"max_iters": 700, "eval_interval": 700}
SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 12}
STEPS = 2000
EVAL_INTERVAL, EVAL_ITERS = 250, 20
PAIRS, TIMED_STEPS = 5, 150


def baseline_model() -> Any:
    """nanoGPT's model at SHAPE: its layers, its initialisation, head tied to the embedding."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    C, H = SHAPE["n_embd"], SHAPE["n_head"]

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(C))

        def forward(self, x: Any) -> Any:
            return F.layer_norm(x, (C,), self.weight, None, 1e-5)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before_attention, self.before_mlp = Norm(), Norm()
            self.qkv = nn.Linear(C, 3 * C, bias=False)
            self.out = nn.Linear(C, C, bias=False)
            self.up = nn.Linear(C, 4 * C, bias=False)
            self.down = nn.Linear(4 * C, C, bias=False)
            self.gelu = nn.GELU()

        def forward(self, x: Any) -> Any:
            B, T, _ = x.shape
            q, k, v = (t.view(B, T, H, C // H).transpose(1, 2) for t in self.qkv(self.before_attention(x)).split(C, 2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).contiguous().view(B, T, C))
            return x + self.down(self.gelu(self.up(self.before_mlp(x))))

    class Baseline(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions = nn.Embedding(65, C), nn.Embedding(SHAPE["block_size"], C)
            self.layers = nn.ModuleList(Layer() for _ in range(SHAPE["n_layer"]))
            self.norm = Norm()
            for name, p in self.named_parameters():
                if p.dim() == 2:
                    last = name.endswith(("out.weight", "down.weight"))
                    nn.init.normal_(p, std=0.02 / math.sqrt(2 * SHAPE["n_layer"]) if last else 0.02)

        def forward(self, idx: Any) -> Any:
            x = self.tokens(idx) + self.positions(torch.arange(idx.size(1)))
            for layer in self.layers:
                x = layer(x)
            return F.linear(self.norm(x), self.tokens.weight)

    return Baseline()


def run_baseline(started: float, steps: int, measure: bool) -> dict[str, Any]:
    """The recipe to the letter; with `measure`, the exact loss at its evaluations, off the clock."""
    import numpy as np
    import torch
    from torch.nn import functional as F

    from chargpt.text.tokens import evaluation_batches, read_tokens
    from chargpt.text.vocab import Vocab

    data = dict(zip(("train", "val"), read_tokens("data/tokens.safetensors", Vocab.load("artifacts/vocab.json"))))  # noqa: B905
    T, B = SHAPE["block_size"], SHAPE["batch_size"]
    torch.manual_seed(1337)
    model = baseline_model()
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))

    def batch(split: str) -> tuple[Any, Any]:
        ids = data[split]
        starts = torch.randint(len(ids) - T, (B,))
        x = torch.stack([torch.from_numpy(ids[i : i + T].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(ids[i + 1 : i + 1 + T].astype(np.int64)) for i in starts])
        return x, y

    def loss_of(x: Any, y: Any) -> Any:
        return F.cross_entropy(model(x).view(-1, 65), y.reshape(-1))

    @torch.no_grad()
    def exact() -> float:
        nats = sum(loss_of(x, y).item() * y.numel() for x, y in evaluation_batches(data["val"], T, 128))
        return float(nats / (len(data["val"]) - 1))

    def rate(step: int) -> float:
        if step < 100:
            return 1e-3 * (step + 1) / 101
        return 1e-4 + 0.5 * (1 + math.cos(math.pi * (step - 100) / 1900)) * 9e-4

    off_clock, points, step_times = 0.0, [], []
    for step in range(steps + 1):
        if measure and step % EVAL_INTERVAL == 0:
            with torch.no_grad():
                for split in data:
                    torch.tensor([loss_of(*batch(split)).item() for _ in range(EVAL_ITERS)]).mean()
            paused = time.time()
            points.append((paused - started - off_clock, exact()))
            off_clock += time.time() - paused
        t = time.perf_counter()
        x, y = batch("train")
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        loss = loss_of(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # it logs every step
        step_times.append(time.perf_counter() - t)
    reached = [seconds for seconds, loss in points if loss <= TARGET]
    return {
        "steps": steps,
        "total_s": time.time() - started - off_clock,
        "reached_s": reached[0] if reached else None,
        "loss": points[-1][1] if points else None,
        "step_s": statistics.median(step_times),
    }


def run_chargpt(started: float, changes: dict[str, Any], evaluated: int | None = None) -> dict[str, Any]:
    """The library's own training with params.yaml and some changes; `evaluated` shortens the validation split."""
    from chargpt.project.params_file import load_params

    params = load_params().model_copy(update=changes)
    from chargpt.evaluation.curve import Row
    from chargpt.text.tokens import read_tokens
    from chargpt.text.vocab import Vocab
    from chargpt.training.loop import Trainer
    from chargpt.training.start import new_model

    vocab = Vocab.load("artifacts/vocab.json")
    train_ids, val_ids = read_tokens("data/tokens.safetensors", vocab)
    val_ids = val_ids[:evaluated]
    rows: list[tuple[float, Row]] = []

    def report(event: object) -> None:
        if isinstance(event, Row):
            rows.append((time.time(), event))

    Trainer(new_model(params, len(vocab)), train_ids, val_ids, params, report=report).train()
    reached = [t - started for t, row in rows if row.val_loss <= TARGET]
    return {
        "steps": params.max_iters,
        "total_s": time.time() - started,
        "reached_s": reached[0] if reached else None,
        "loss": min(row.val_loss for _, row in rows),
        "step_s": (rows[-1][0] - rows[0][0]) / params.max_iters,
    }


def matmul_peak(dtype: str) -> float:
    """Multiplications and additions per second of a large matrix product in what `dtype` picks here."""
    import torch

    from chargpt.device import pick_dtype

    a = torch.randn(2048, 2048, dtype=pick_dtype(dtype, torch.device("cpu")))
    times = []
    for _ in range(12):
        t = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - t)
    return 2 * 2048**3 / min(times)


def child(what: str, **arguments: Any) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    command = [sys.executable, __file__, "--one", what, json.dumps(arguments), str(time.time())]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def recipes(seeds: int = 3) -> None:
    """Train each recipe of docs/recipes.md, and print the medians of its seconds and of its loss."""
    from ruamel.yaml import YAML

    page = Path("docs/recipes.md").read_text(encoding="utf-8")
    print(f"{'seconds':>8}{'val_loss':>10}  each loss, and the command")
    for command in dict.fromkeys(re.findall(r"^dvc (?:repro|exp run .*)$", page, re.MULTILINE)):
        changes = {key: YAML(typ="safe").load(value) for key, value in re.findall(r"-S (\w+)=(\S+)", command)}
        runs = [child("chargpt", changes=changes | {"seed": 1337 + i}) for i in range(seeds)]
        losses = [run["loss"] for run in runs]
        seconds, loss = statistics.median(run["total_s"] for run in runs), statistics.median(losses)
        print(f"{seconds:8.0f}{loss:10.4f}  {' '.join(f'{loss:.4f}' for loss in losses)}  {command}", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--recipes"]:
        return recipes()
    if sys.argv[1:2] == ["--one"]:
        what, arguments, started = sys.argv[2], json.loads(sys.argv[3]), float(sys.argv[4])
        runs = {"baseline": run_baseline, "chargpt": run_chargpt}
        print(json.dumps(runs[what](started, **arguments) if what in runs else {"peak": matmul_peak(**arguments)}))
        return
    given = {"dtype": sys.argv[1] if sys.argv[1:] else "auto"}
    base = child("baseline", steps=STEPS, measure=True)
    ours = child("chargpt", changes=QUICK | given)
    longer = child("chargpt", changes=LONG | given)
    print(f"{'run':<32}{'steps':>7}{'total s':>9}{'s to ' + str(TARGET):>12}{'loss':>9}")
    for name, r in (
        ("baseline (nanoGPT's CPU recipe)", base),
        ("chargpt, quick", ours),
        ("chargpt, equal time", longer),
    ):
        reached = f"{r['reached_s']:.1f}" if r["reached_s"] else "-"
        print(f"{name:<32}{r['steps']:>7}{r['total_s']:>9.1f}{reached:>12}{r['loss']:>9.4f}")
    if ours["reached_s"]:  # a baseline that ends above the target is given its total time
        print(f"time to {TARGET}: {ours['reached_s'] / (base['reached_s'] or base['total_s']):.3f} of the baseline's")
    print(f"equal time: {longer['total_s'] / base['total_s']:.3f} of the baseline's, loss {longer['loss']:.4f}")

    plain = SHAPE | {"optimizer": "adamw", "lr": 1e-3, "max_iters": TIMED_STEPS, "eval_interval": TIMED_STEPS}
    theirs, steps = [], {"auto": [], "float32": []}
    for _ in range(PAIRS):
        theirs.append(child("baseline", steps=TIMED_STEPS, measure=False)["step_s"])
        for dtype, times in steps.items():
            changes = plain | {"warmup_iters": 20, "dtype": dtype}
            times.append(child("chargpt", changes=changes, evaluated=65)["step_s"])
    C, L = SHAPE["n_embd"], SHAPE["n_layer"]
    work = 6 * (12 * L * C * C + 65 * C) * SHAPE["block_size"] * SHAPE["batch_size"]
    for dtype, times in steps.items():
        ratios = [a / b for a, b in zip(theirs, times, strict=True)]
        step, peak = statistics.median(times), child("peak", dtype=dtype)["peak"]
        print(
            f"steps per second, same shapes, AdamW, dtype {dtype}: {statistics.median(ratios):.2f} times the baseline's"
        )
        rate = work / step
        print(
            f"  {step * 1e3:.1f} ms a step: {rate / 1e9:.0f} of {peak / 1e9:.0f} Gflop/s, {rate / peak:.0%} of the peak"
        )


if __name__ == "__main__":
    main()
