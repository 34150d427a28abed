"""The training loop: evaluate, save and update, until the last update is made. It can stop before every update."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from chargpt.device import pick_device, pick_dtype
from chargpt.errors import ChargptError
from chargpt.evaluation.curve import Row, overfitting
from chargpt.evaluation.loss import evaluate
from chargpt.model.gpt import GPT
from chargpt.text.tokens import Ids, training_batch
from chargpt.training.checkpoint import State
from chargpt.training.monitor import Monitor, Stopped
from chargpt.training.processes import World
from chargpt.training.run import Run
from chargpt.training.schedule import Schedule, make_schedule

if TYPE_CHECKING:
    from chargpt.params import Params

SAVE, STOP = 1, 2  # what a process may request before an update


@dataclass(frozen=True)
class Task:
    """What stays the same while a model is trained.

    net: computes logits; the result of `wrap`. dtype: number format of matrix products.
    """

    net: Callable[[Tensor], Tensor]
    train_ids: Ids
    val_ids: Ids
    params: Params
    world: World
    dtype: torch.dtype
    schedule: Schedule


def train(
    model: GPT,
    train_ids: Ids,
    val_ids: Ids,
    params: Params,
    on_row: Callable[[Row], None],
    *,
    state: State | None = None,
    world: World | None = None,
    monitor: Monitor | None = None,
) -> GPT:
    """Train with `max_iters` updates or for `max_epochs` epochs, whichever ends first.

    Returns the model with the weights of its lowest validation loss. train_ids, val_ids: 1-D unsigned. on_row: called
    with each point of the training curve: before the first update, every eval_interval updates and after the last
    update. A continued run first calls it with the earlier points. state: where to save, and to continue from. world:
    the processes that train together. monitor: watches the run and may stop it. The same arguments on the same machine
    give the same bytes, whether the run was interrupted or not.
    Raises ChargptError if the text is too short for block_size, if the processes cannot share the batch evenly, or if
    a loss is not finite. Raises Stopped, after saving the state, if the monitor stops the run.
    """
    world = world or World(pick_device(params.device))
    check_sizes(train_ids, params, world)
    dtype = pick_dtype(params.dtype, world.device)
    run = Run(model.to(world.device).train(), params, dtype)
    saved = state.load() if state else None
    if saved:
        run.restore(*saved, world.rank)
    schedule = make_schedule(params, len(train_ids))
    task = Task(wrap(model, params, world), train_ids, val_ids, params, world, dtype, schedule)
    monitor = monitor or Monitor()
    teller, on_row = (monitor, on_row) if world.rank == 0 else (Monitor(), lambda row: None)  # only one process reports
    for row in run.rows:
        on_row(row)
    with monitor:
        teller.started(run.step, schedule.max_iters)
        if schedule.max_iters < params.max_iters:
            updates = f"{params.max_epochs} epochs of this text are {schedule.max_iters} updates"
            teller.say(f"{updates}, fewer than max_iters={params.max_iters}; a higher max_epochs trains longer")
        if saved:
            teller.say(f"continuing at step {run.step}")
        while True:
            if evaluation_is_due(run, schedule):
                row = add_row(run, task)
                on_row(row)
                teller.evaluated(row)
            save_or_stop(run, world, state, monitor, teller)
            if run.step == schedule.max_iters:
                break
            update(run, task)
            teller.stepped(run.losses)
        teller.say(f"done; the weights of the lowest validation loss, {run.best_loss:.4f}, are kept")
        if hint := overfitting(run.rows):
            teller.say(hint)
    model.load_state_dict(run.best)
    return model.eval()


def update(run: Run, task: Task) -> None:
    """Update every weight once: batch and forward, backward, clip, update."""
    loss = batch_loss(run.step, task)
    loss.backward()
    run.losses.append(loss.detach())
    if task.params.grad_clip:
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), task.params.grad_clip)
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = task.params.lr * task.schedule.rate_factor(run.step)
        optimizer.step()
        optimizer.zero_grad()
    run.step += 1


def batch_loss(step: int, task: Task) -> Tensor:
    """Mean loss, in nats per character, over this process's share of the batch for update `step`; a scalar tensor."""
    params, world = task.params, task.world
    batch = training_batch(task.train_ids, params.block_size, params.batch_size, params.seed, step)
    share = params.batch_size // world.size
    mine = slice(world.rank * share, (world.rank + 1) * share)
    idx, targets = (torch.from_numpy(part[mine]).to(world.device) for part in batch)
    if params.dropout:
        seed = (params.seed * 1_000_003 + step) * world.size + world.rank
        # on a CPU not by torch.manual_seed, which takes a millisecond to tell the devices that are not there
        (torch.default_generator if world.device.type == "cpu" else torch).manual_seed(seed % 2**63)
    with torch.autocast(world.device.type, task.dtype, enabled=task.dtype != torch.float32):
        logits = task.net(idx)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def evaluation_is_due(run: Run, schedule: Schedule) -> bool:
    """Whether to evaluate now. A run that continues at such a step does not evaluate again."""
    return schedule.evaluates(run.step) and (not run.rows or run.rows[-1].step < run.step)


def add_row(run: Run, task: Task) -> Row:
    """Evaluate the model, add a row to the curve and return it. Raises ChargptError if a loss is not finite."""
    losses = run.losses or [batch_loss(run.step, task).detach()]  # before the first update: the loss of its batch
    train_loss = task.world.mean(torch.stack(losses).mean()).item()
    lr = task.params.lr * task.schedule.rate_factor(run.step)
    row = Row(run.step, train_loss, evaluate(run.model, task.val_ids), lr)
    check_finite(row, task.params)
    run.rows.append(row)
    run.losses.clear()
    run.keep_if_best(row.val_loss)
    return row


def save_or_stop(run: Run, world: World, state: State | None, monitor: Monitor, teller: Monitor) -> None:
    """Save the state if that is due. If any process is asked to stop, save the state and raise Stopped."""
    reason = monitor.stop_reason()
    due = state is not None and world.rank == 0 and state.due()
    action = world.max(STOP if reason else SAVE if due else 0)
    saved = False
    if state and action:
        tensors = run.tensors(world)
        saved = world.rank == 0 and state.save(tensors, run.facts())
    if action == STOP:
        where = f"saved at step {run.step}" if saved else "not saved"
        teller.say(f"stopped ({reason or 'another process'}); {where}, run again to go on")
        raise Stopped


def check_sizes(train_ids: Ids, params: Params, world: World) -> None:
    """Raise ChargptError if the text is too short, or if the processes cannot share the batch evenly."""
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
    """The model in the form that training calls.

    With several processes, it averages their gradients. If `compile` is true, torch compiles it.
    Raises ChargptError if torch cannot compile on this machine.
    """
    net: torch.nn.Module = model
    if world.size > 1:
        net = DistributedDataParallel(net)
    if not params.compile:
        return net
    net = torch.compile(net)  # type: ignore[assignment]
    try:  # a missing compiler is noticed only at the first call
        net(torch.zeros(1, params.block_size, dtype=torch.int64, device=world.device)).sum().backward()
        model.zero_grad()
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ChargptError(f"compile: true does not work here ({reason}); use -S compile=false") from None
    return net
