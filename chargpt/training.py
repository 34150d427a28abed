"""Training: learning-rate schedule and loop, interruptible at every step."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from chargpt.data import Ids, training_batch
from chargpt.device import World, pick_device, pick_dtype
from chargpt.errors import ChargptError
from chargpt.evaluation import evaluate
from chargpt.model import GPT, GPTConfig
from chargpt.optimizers import make_optimizers
from chargpt.params import Params
from chargpt.resume import State
from chargpt.stops import Stopped, Stops

# what shapes the weights: the keys that the train stage reads, and that the model file keeps
TRAINING_KEYS = {
    *("init", "n_layer", "n_head", "n_embd", "block_size", "dropout"),
    *("seed", "device", "dtype", "compile", "batch_size", "max_iters", "eval_interval"),
    *("optimizer", "lr", "warmup_iters", "final_lr_fraction"),
    *("weight_decay", "momentum", "beta1", "beta2", "grad_clip"),
}


SAVE, STOP = 1, 2  # what a process may wish for after a step


@dataclass(frozen=True)
class Row:
    """One point of the training curve; losses in nats per character, `step` updates made so far."""

    step: int
    train_loss: float
    val_loss: float
    lr: float

    def __str__(self) -> str:
        return f"{self.step}\t{self.train_loss:.6f}\t{self.val_loss:.6f}\t{self.lr:.8g}\n"


class Curve:
    """The curve as a tab-separated file, made at the first row and written line by line, so that it can be watched."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.file: TextIO | None = None

    def __enter__(self) -> Curve:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file:
            self.file.close()

    def add(self, row: Row) -> None:
        """Write one row."""
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)  # may be a link into DVC's cache
            self.file = self.path.open("w", newline="\n", buffering=1)
            self.file.write("\t".join(field.name for field in fields(Row)) + "\n")
        self.file.write(str(row))


def rate_factor(step: int, params: Params) -> float:
    """The part of its peak rate at which update `step` (from 0) is made: up linearly, then down linearly."""
    if step < params.warmup_iters:
        return (step + 1) / (params.warmup_iters + 1)
    left = 1 - (step - params.warmup_iters) / max(1, params.max_iters - params.warmup_iters)
    return params.final_lr_fraction + (1 - params.final_lr_fraction) * left


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


class Run:
    """Everything that changes while training, so that it can be saved and continued with the same result.

    Batches and dropout need no state: both follow from the seed and the step.
    """

    def __init__(self, model: GPT, params: Params, dtype: torch.dtype) -> None:
        self.model = model
        self.optimizers = make_optimizers(model, params, dtype)
        self.step = 0
        self.rows: list[Row] = []
        self.losses: list[Tensor] = []  # of the batches since the last row
        self.best_loss = math.inf
        self.best = self._weights()

    def keep_if_best(self, val_loss: float) -> None:
        """Remember the present weights if no validation loss was lower."""
        if val_loss < self.best_loss:
            self.best_loss, self.best = val_loss, self._weights()

    def tensors(self, world: World) -> dict[str, Tensor]:
        """All tensors of the state, by name; every process must ask, because each has losses of its own."""
        named = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        named |= {f"best.{name}": t for name, t in self.best.items()}
        named |= {name: state[key] for name, state, key in self._optimizer_state()}
        losses = torch.stack(self.losses) if self.losses else torch.zeros(0, device=world.device)
        return named | {"losses": world.gather(losses)}

    def facts(self) -> dict[str, Any]:
        """What else belongs to the state, as JSON values."""
        rows = [astuple(row) for row in self.rows]
        return {"step": self.step, "best_loss": self.best_loss, "rows": rows, "threads": torch.get_num_threads()}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any], rank: int) -> None:
        """Continue from a saved state of a run with the same model and parameters.

        The number of threads is part of it: it shows in the last bits.
        """
        torch.set_num_threads(facts["threads"])
        device = self.model.wte.weight.device
        self.step, self.best_loss = facts["step"], facts["best_loss"]
        self.rows = [Row(*row) for row in facts["rows"]]
        self.losses = list(tensors.pop("losses")[rank].to(device))
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}}
        parameters = dict(self.model.named_parameters())
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part in parts:
                parts[part][rest] = tensor.to(device)
            else:
                number, _, rest = rest.partition(".")
                parameter, _, key = rest.rpartition("/")
                fused_step = key == "step"  # AdamW keeps its step count on the parameters' device
                state = self.optimizers[int(number)].state[parameters[parameter]]
                state[key] = tensor.to(device) if not fused_step or device.type == "cuda" else tensor
        self.model.load_state_dict(parts["model"])
        self.best = parts["best"]

    def _weights(self) -> dict[str, Tensor]:
        return {name: t.clone() for name, t in self.model.state_dict().items()}

    def _optimizer_state(self) -> Iterator[tuple[str, dict[str, Tensor], str]]:
        for number, optimizer in enumerate(self.optimizers):
            for name, p in self.model.named_parameters():
                for key in sorted(optimizer.state.get(p, {})):
                    yield f"optimizer.{number}.{name}/{key}", optimizer.state[p], key


def train(
    model: GPT,
    train_ids: Ids,
    val_ids: Ids,
    params: Params,
    on_row: Callable[[Row], None],
    *,
    state: State | None = None,
    world: World | None = None,
    stops: Stops | None = None,
) -> GPT:
    """Train with `max_iters` updates and return the model at its lowest validation loss.

    train_ids, val_ids: 1-D unsigned. on_row: called with each point of the curve, before the first update, every
    eval_interval updates and after the last; after an interruption with the earlier ones again.
    state: where to save, and to continue from. stops: made when the process started. The same arguments on the same
    machine give the same bytes, interrupted or not. Raises ChargptError if the text is too short for block_size or the
    loss stops being a number; Stopped, with the state saved, if training is stopped from outside.
    """
    world = world or World(pick_device(params.device))
    check_sizes(train_ids, params, world)
    dtype = pick_dtype(params.dtype, world.device)
    run = Run(model.to(world.device).train(), params, dtype)
    saved = state.load() if state else None
    if saved:
        run.restore(*saved, world.rank)
        for row in run.rows if world.rank == 0 else []:
            on_row(row)
    net = wrap(model, params, world)
    share = params.batch_size // world.size  # of the one global batch
    mine = slice(world.rank * share, (world.rank + 1) * share)
    with Progress(params, run.step, quiet=world.rank > 0) as progress, stops or Stops() as stops:
        if saved:
            progress.say(f"continuing at step {run.step}")
        while True:
            idx, targets = training_batch(train_ids, params.block_size, params.batch_size, params.seed, run.step)
            idx, targets = idx[mine].to(world.device), targets[mine].to(world.device)
            if params.dropout:
                seed = (params.seed * 1_000_003 + run.step) * world.size + world.rank
                torch.manual_seed(seed % 2**63)  # as large as torch takes
            with torch.autocast(world.device.type, dtype, enabled=dtype != torch.float32):
                logits = net(idx)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
            factor = rate_factor(run.step, params)
            last = run.step == params.max_iters
            if (run.step % params.eval_interval == 0 or last) and (not run.rows or run.rows[-1].step < run.step):
                train_loss = world.mean(torch.stack(run.losses or [loss.detach()]).mean()).item()
                row = Row(run.step, train_loss, evaluate(model, val_ids), params.lr * factor)
                check_finite(row, params)
                run.rows.append(row)
                run.losses.clear()
                run.keep_if_best(row.val_loss)
                if world.rank == 0:
                    on_row(row)
                progress.evaluated(row)
            wish = world.max(STOP if stops.requested() else SAVE if state and world.rank == 0 and state.due() else 0)
            saved_now = False
            if state and wish:
                tensors = run.tensors(world)
                saved_now = world.rank == 0 and state.save(tensors, run.facts())
            if wish == STOP:
                where = f"saved at step {run.step}" if saved_now else "not saved"
                progress.say(f"stopped ({stops.reason or 'another process'}); {where}, run again to go on")
                raise Stopped(stops.status or 1)
            if last:
                break
            loss.backward()
            run.losses.append(loss.detach())
            if params.grad_clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), params.grad_clip)
            for optimizer in run.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = params.lr * factor
                optimizer.step()
                optimizer.zero_grad()
            run.step += 1
            progress.stepped(run.losses)
        progress.say(f"done; the weights of the lowest validation loss, {run.best_loss:.4f}, are kept")
    model.load_state_dict(run.best)
    return model.eval()


def settings(params: Params, world: World) -> dict[str, Any]:
    """What besides parameters, data and code decides the last bits of the result."""
    return {
        "torch": torch.__version__,
        "processes": world.size,
        "computed on": f"{world.device} in {pick_dtype(params.dtype, world.device)}",
    }


def check_sizes(train_ids: Ids, params: Params, world: World) -> None:
    """Raise ChargptError if the text is too short or the batch cannot be shared out evenly."""
    if len(train_ids) <= params.block_size:
        raise ChargptError(
            f"the text has {len(train_ids)} characters to train on; block_size={params.block_size} needs at least"
            f" {params.block_size + 1}: use a longer text or -S block_size={max(1, len(train_ids) // 2)}"
        )
    if params.batch_size % world.size:
        raise ChargptError(
            f"batch_size={params.batch_size} cannot be shared evenly by {world.size} processes;"
            f" try -S batch_size={math.ceil(params.batch_size / world.size) * world.size}"
        )


def check_finite(row: Row, params: Params) -> None:
    """Raise ChargptError if a loss is not a finite number."""
    if not math.isfinite(row.train_loss + row.val_loss):
        raise ChargptError(
            f"step {row.step}: training loss {row.train_loss}, validation loss {row.val_loss}: training diverged, no"
            f" model was written; try a lower rate (-S lr={params.lr / 3:.2g}), more warmup_iters or grad_clip: 1.0"
        )


def wrap(model: GPT, params: Params, world: World) -> Callable[[Tensor], Tensor]:
    """The model as it is called in training: compiled and shared between processes where asked for.

    Raises ChargptError if torch cannot compile here.
    """
    net: torch.nn.Module = model
    if world.size > 1:
        net = DistributedDataParallel(net)
    if not params.compile:
        return net
    net = torch.compile(net)  # type: ignore[assignment]
    try:  # a missing compiler shows at the first call only
        net(torch.zeros(1, params.block_size, dtype=torch.int64, device=world.device)).sum().backward()
        model.zero_grad()
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ChargptError(f"compile: true does not work here ({reason}); use -S compile=false") from None
    return net


class Progress:
    """The progress line on stderr: losses, rate, characters per second, time left; plain lines in a file."""

    def __init__(self, params: Params, done: int, quiet: bool = False) -> None:
        self.batch = params.batch_size * params.block_size
        self.max_iters = params.max_iters
        self.quiet = quiet
        self.done, self.started = 0, time.monotonic()
        self.live = sys.stderr.isatty() and not quiet
        self.row = ""
        total = params.max_iters * self.batch
        self.bar = tqdm(
            total=total, initial=done * self.batch, unit="char", unit_scale=True, disable=not self.live, leave=False
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def stepped(self, losses: list[Tensor]) -> None:
        """Count one update."""
        self.bar.update(self.batch)
        self.done += 1
        if self.live and len(losses) % 20 == 1:  # reading a loss makes a GPU wait
            self.bar.set_description_str(f"train {losses[-1].item():.3f} {self.row}", refresh=False)

    def evaluated(self, row: Row) -> None:
        """Show the figures of an evaluation, with characters per second and time left."""
        self.row = f"val {row.val_loss:.4f} lr {row.lr:.2e}"
        if not self.live:
            pace = (time.monotonic() - self.started) / max(1, self.done)  # seconds per update
            speed = (
                f", {self.batch / pace:.0f} char/s, {pace * (self.max_iters - row.step):.0f} s left"
                if self.done
                else ""
            )
            self.say(f"step {row.step}/{self.max_iters}: train {row.train_loss:.4f} {self.row}{speed}")

    def say(self, text: str) -> None:
        """One plain line."""
        if not self.quiet:
            with suppress(OSError):  # nobody may be listening any more
                tqdm.write(f"train: {text}", file=sys.stderr)
