"""Training: learning-rate schedule, optimizer, loop."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from chargpt.data import Ids, training_batch
from chargpt.device import pick_device
from chargpt.errors import ChargptError
from chargpt.evaluation import evaluate
from chargpt.model import GPT, GPTConfig
from chargpt.params import Params

# what shapes the weights: the keys that the train stage reads, and that the model file keeps
TRAINING_KEYS = {
    *("init", "n_layer", "n_head", "n_embd", "block_size", "dropout"),
    *("seed", "device", "batch_size", "max_iters", "eval_interval"),
    *("lr", "warmup_iters", "final_lr_fraction", "weight_decay", "beta1", "beta2", "grad_clip"),
}


@dataclass(frozen=True)
class Row:
    """One point of the training curve; losses in nats per character, `step` updates made so far."""

    step: int
    train_loss: float
    val_loss: float
    lr: float

    HEADER = "step\ttrain_loss\tval_loss\tlr\n"

    def __str__(self) -> str:
        return f"{self.step}\t{self.train_loss:.6f}\t{self.val_loss:.6f}\t{self.lr:.8g}\n"


def learning_rate(step: int, params: Params) -> float:
    """The rate of update `step` (from 0): linear warm-up to lr, then a cosine down to final_lr_fraction * lr."""
    if step < params.warmup_iters:
        return params.lr * (step + 1) / (params.warmup_iters + 1)
    progress = (step - params.warmup_iters) / max(1, params.max_iters - params.warmup_iters)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return params.lr * (params.final_lr_fraction + (1 - params.final_lr_fraction) * cosine)


def make_optimizer(model: GPT, params: Params) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only, as embeddings, biases and norms are no sums over inputs to shrink."""
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and not name.startswith(("wte", "wpe"))]
    ids = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in ids]
    groups = [{"params": matrices, "weight_decay": params.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=params.lr, betas=(params.beta1, params.beta2), fused=True)


def new_model(params: Params, vocab_size: int) -> GPT:
    """A freshly initialised model with params.yaml's architecture, the same for the same seed."""
    torch.manual_seed(params.seed)
    return GPT(
        GPTConfig(vocab_size, params.block_size, params.n_layer, params.n_head, params.n_embd, dropout=params.dropout)
    )


def continued_model(migrated: GPT, params: Params) -> GPT:
    """The migrated model with params.yaml's dropout, to train on; its dialect stays what it was.

    Raises ChargptError listing every size that differs from params.yaml.
    """
    names = ("n_layer", "n_head", "n_embd", "block_size")
    ours, theirs = params.model_dump(), vars(migrated.config)
    different = [name for name in names if ours[name] != theirs[name]]
    if different:
        table = "; ".join(f"{name} is {ours[name]}, the migrated model has {theirs[name]}" for name in different)
        switches = " ".join(f"-S {name}={theirs[name]}" for name in different)
        raise ChargptError(f"params.yaml does not fit init=migrated: {table}; use {switches}")
    model = GPT(replace(migrated.config, dropout=params.dropout))
    model.load_state_dict(migrated.state_dict())
    return model


def train(model: GPT, train_ids: Ids, val_ids: Ids, params: Params, on_row: Callable[[Row], None]) -> GPT:
    """Train with `max_iters` updates and return the model at its lowest validation loss.

    train_ids, val_ids: 1-D unsigned. on_row: called with each point of the curve, before the first update,
    every eval_interval updates and after the last. The same arguments on the same machine give the same bytes.
    Raises ChargptError if the text is too short for block_size or the loss stops being a number.
    """
    if len(train_ids) <= params.block_size:
        raise ChargptError(
            f"the text has {len(train_ids)} characters to train on; block_size={params.block_size} needs at least"
            f" {params.block_size + 1}: use a longer text or -S block_size={max(1, len(train_ids) // 2)}"
        )
    device = pick_device(params.device)
    model.to(device).train()
    torch.manual_seed(params.seed)  # dropout
    optimizer = make_optimizer(model, params)
    best_loss, best = math.inf, {name: t.clone() for name, t in model.state_dict().items()}
    losses: list[Tensor] = []
    with Progress(params) as progress:
        for step in range(params.max_iters + 1):
            idx, targets = training_batch(train_ids, params.block_size, params.batch_size, params.seed, step)
            logits = model(idx.to(device))
            loss = F.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten())
            lr = learning_rate(step, params)
            if step % params.eval_interval == 0 or step == params.max_iters:
                train_loss = torch.stack(losses or [loss.detach()]).mean().item()
                row = Row(step, train_loss, evaluate(model, val_ids), lr)
                if not math.isfinite(row.train_loss + row.val_loss):
                    raise ChargptError(
                        f"step {step}: training loss {row.train_loss}, validation loss {row.val_loss}: training"
                        " diverged, no model was written;"
                        f" try a lower rate (-S lr={params.lr / 3:.2g}), more warmup_iters or grad_clip: 1.0"
                    )
                on_row(row)
                progress.evaluated(row)
                losses.clear()
                if row.val_loss < best_loss:
                    best_loss, best = row.val_loss, {name: t.clone() for name, t in model.state_dict().items()}
            if step == params.max_iters:
                break
            loss.backward()
            losses.append(loss.detach())
            if params.grad_clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), params.grad_clip)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()
            progress.stepped()
    model.load_state_dict(best)
    return model.eval()


class Progress:
    """The progress line on stderr: loss, characters per second, time left; one plain line per evaluation in a file."""

    def __init__(self, params: Params) -> None:
        self.batch = params.batch_size * params.block_size
        self.params = params
        self.live = sys.stderr.isatty()
        self.bar = tqdm(
            total=params.max_iters * self.batch, unit="char", unit_scale=True, disable=not self.live, leave=False
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def stepped(self) -> None:
        """Count one update."""
        self.bar.update(self.batch)

    def evaluated(self, row: Row) -> None:
        """Show the figures of an evaluation."""
        text = f"train {row.train_loss:.4f} val {row.val_loss:.4f} lr {row.lr:.2e}"
        self.bar.set_description_str(text)
        if not self.live:
            print(f"step {row.step}/{self.params.max_iters}: {text}", file=sys.stderr, flush=True)
