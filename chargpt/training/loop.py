"""The training loop: evaluate, save and step, until the last step is made. It can stop before every step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from chargpt.device import pick_device, pick_dtype
from chargpt.errors import ChargptError
from chargpt.evaluation.curve import WORSE, Row, diagnosis
from chargpt.evaluation.loss import evaluate
from chargpt.model.gpt import GPT
from chargpt.text.documents import PAD, Documents
from chargpt.text.tokens import Split, training_batch, unseen_share
from chargpt.training.checkpoint import CheckpointStore
from chargpt.training.events import Event, Log, Report, ShouldStop, Started, Stepped, Stopped, ignore, never
from chargpt.training.processes import ProcessGroup
from chargpt.training.schedule import Schedule
from chargpt.training.state import TrainState

if TYPE_CHECKING:
    from chargpt.params import Params

SAVE, STOP = 1, 2  # what a process may request before a step


class Trainer:
    """Trains a model for `max_iters` steps.

    train_ids, val_ids: (N,) unsigned. params: without `auto`, see `resolve`. report: called on rank 0 with what
    happens; each row of the curve is reported once, rows of an earlier start with `Started`. should_stop: asked before
    every step and between the batches of an evaluation. store: where to save, and to continue from. group: the
    processes that train together.
    The same arguments on the same machine give the same weights on a CPU, whether the run was interrupted or not.
    Raises ChargptError if the text is too short for block_size, if the processes cannot share the batch evenly, or if
    torch cannot compile the model.
    """

    def __init__(
        self,
        model: GPT,
        train_ids: Split,
        val_ids: Split,
        params: Params,
        *,
        report: Report = ignore,
        should_stop: ShouldStop = never,
        store: CheckpointStore | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        self.params, self.train_ids, self.val_ids = params, train_ids, val_ids
        self.should_stop, self.store = should_stop, store
        self.group = group or ProcessGroup(pick_device(params.device))
        self._report = report
        check_sizes(train_ids, params, self.group)
        self.dtype = pick_dtype(params.dtype, self.group.device)
        self.schedule = Schedule(params.max_iters, params.eval_interval, params.warmup_iters, params.final_lr_fraction)
        self.model = model.to(self.group.device).train()
        self.state = TrainState(self.model, params, self.dtype)
        self.continued = self.restore()
        self.net = self.wrap()

    def train(self) -> GPT:
        """Run every step that is left. Returns the model with the weights of its lowest validation loss.

        Raises ChargptError if a loss is not finite or the untrained model remains the best, and Stopped, after it saved
        a checkpoint, if `should_stop` returns a reason.
        """
        state, schedule, params = self.state, self.schedule, self.params
        batch = params.batch_size * params.block_size
        self.report(Started(state.step, schedule.max_iters, batch, tuple(state.rows)))
        if self.continued:
            self.log(f"continuing at step {state.step}")
        while True:
            self.evaluate()
            self.save_or_stop()
            if state.step == schedule.max_iters:
                break
            loss = self.loss(state.step)
            loss.backward()
            if params.grad_clip:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), params.grad_clip)
            for optimizer in state.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = params.lr * schedule.rate_factor(state.step)
                optimizer.step()
                optimizer.zero_grad()
            state.step += 1
            state.losses.append(loss.detach())
            self.report(Stepped(state.step, state.losses[-1]))
        hint = diagnosis(state.rows, unseen_share(self.train_ids, self.val_ids, self.model.config.vocab_size))
        harmed = state.best_loss == state.rows[0].val_loss < state.rows[-1].val_loss - WORSE
        if harmed and params.init == "scratch":
            problem = "no model was written, because none is better than the untrained one"
            raise ChargptError(f"{problem}: {hint or 'lower the learning rate'}")
        self.log(f"done; kept the weights with the lowest validation loss, {state.best_loss:.4f}")
        if hint:
            self.log(hint)
        self.model.load_state_dict(state.best)
        return self.model.eval()

    def loss(self, step: int) -> Tensor:
        """Mean loss, in nats per character, over this process's share of the batch of a step; a scalar tensor.

        The mean of these losses over the processes is that of the whole batch.
        """
        params, group = self.params, self.group
        batch = training_batch(self.train_ids, params.block_size, params.batch_size, params.seed, step)
        mine = slice(*(len(batch[0]) * rank // group.size for rank in (group.rank, group.rank + 1)))
        idx, targets = (torch.from_numpy(part[mine]).to(group.device) for part in batch)
        if params.dropout:
            seed = (params.seed * 1_000_003 + step) * group.size + group.rank
            # on a CPU not by torch.manual_seed, which takes a millisecond to reach the devices that are not there
            (torch.default_generator if group.device.type == "cpu" else torch).manual_seed(seed % 2**63)
        with self.autocast():
            logits = self.net(idx)
        nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PAD, reduction="sum")
        return nats / ((batch[1] != PAD).sum() / group.size)

    def evaluate(self) -> None:
        """Add a row to the curve where the schedule says so. A stop abandons it; the next start evaluates again."""
        state, params = self.state, self.params
        if not self.schedule.evaluates(state.step) or (state.rows and state.rows[-1].step == state.step):
            return
        try:
            val_loss = evaluate(self.model, self.val_ids, self.raise_if_stopped)
            abandoned = 0
        except Stopped:
            val_loss, abandoned = math.nan, 1
        if self.group.max(abandoned):
            return
        losses = state.losses or [self.loss(state.step).detach()]  # before the first step: the loss of its batch
        train_loss = self.group.mean(torch.stack(losses).mean()).item()
        row = Row(state.step, train_loss, val_loss, params.lr * self.schedule.rate_factor(state.step))
        if not math.isfinite(train_loss + val_loss):
            raise ChargptError(
                f"step {row.step}: training loss {train_loss}, validation loss {val_loss}: training diverged, no model"
                f" was written; lower the learning rate (-S lr={params.lr / 3:.2g}), or try more warmup_iters or"
                " grad_clip=1.0"
            )
        state.add_row(row)
        self.report(row)

    def save_or_stop(self) -> None:
        """Save a checkpoint if that is due. If any process is to stop, save one and raise Stopped."""
        stop = self.should_stop()
        due = self.store is not None and self.group.rank == 0 and self.store.due()
        action = self.group.max(STOP if stop else SAVE if due else 0)
        saved = False
        if self.store and action:
            losses = torch.stack(self.state.losses) if self.state.losses else torch.zeros(0, device=self.group.device)
            losses = self.group.gather(losses)
            if self.group.rank == 0:
                saved = self.store.save(self.state.tensors() | {"losses": losses}, self.state.facts())
        if action == STOP:
            stop = stop or Stopped("another rank stopped")
            where = f"saved at step {self.state.step}" if saved else "not saved"
            self.log(f"stopped ({stop.reason}); {where}. Run the same command to continue.")
            raise stop

    def restore(self) -> bool:
        """Continue from rank 0's checkpoint, if there is one; return whether there is."""
        saved = self.store.load() if self.store and self.group.rank == 0 else None
        saved = self.group.broadcast(saved)
        if saved:
            tensors, facts = saved
            self.state.restore(tensors, facts, tensors.pop("losses")[self.group.rank])
        return saved is not None

    def wrap(self) -> Callable[[Tensor], Tensor]:
        """The model in the form that training calls: gradients averaged over the processes, compiled if asked for.

        Raises ChargptError if torch cannot compile on this machine.
        """
        net: torch.nn.Module = self.model
        if self.group.size > 1:
            net = DistributedDataParallel(net)
        if not self.params.compile:
            return net
        net = torch.compile(net)  # type: ignore[assignment]
        shape = (self.params.batch_size // self.group.size, self.params.block_size)
        try:  # with the shape and the dtype of every step: otherwise the first step would compile again
            with self.autocast():
                net(torch.zeros(shape, dtype=torch.int64, device=self.group.device)).sum().backward()
            self.model.zero_grad()
        except Exception as error:
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise ChargptError(f"compile: true does not work here ({reason}); use -S compile=false") from None
        return net

    def autocast(self) -> torch.autocast:
        """Matrix products in the training dtype."""
        return torch.autocast(self.group.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def raise_if_stopped(self) -> None:
        """Raise Stopped if the run is to stop."""
        if stop := self.should_stop():
            raise stop

    def report(self, event: Event) -> None:
        """Report an event, on rank 0 only."""
        if self.group.rank == 0:
            self._report(event)

    def log(self, text: str) -> None:
        """Report a line of text."""
        self.report(Log(text))


def check_sizes(train_ids: Split, params: Params, group: ProcessGroup) -> None:
    """Raise ChargptError if the text is too short, or if the processes cannot share the batch evenly."""
    if len(train_ids) <= params.block_size and not isinstance(train_ids, Documents):
        raise ChargptError(
            f"the text has {len(train_ids)} characters to train on; block_size={params.block_size} needs at least"
            f" {params.block_size + 1}: use a longer text or -S block_size={max(1, len(train_ids) // 2)}"
        )
    if params.batch_size % group.size:
        raise ChargptError(
            f"batch_size={params.batch_size} cannot be shared evenly by {group.size} processes;"
            f" try -S batch_size={math.ceil(params.batch_size / group.size) * group.size}"
        )
