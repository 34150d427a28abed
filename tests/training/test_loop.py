from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from chargpt.errors import ChargptError
from chargpt.evaluation.curve import Curve, Row, overfitting
from chargpt.evaluation.loss import evaluate
from chargpt.model.config import GPTConfig
from chargpt.params import Params
from chargpt.project.params_file import load_params
from chargpt.runtime import machine
from chargpt.runtime.progress import Progress
from chargpt.runtime.signals import Stops
from chargpt.text.tokens import training_batch
from chargpt.training import loop
from chargpt.training.checkpoint import State
from chargpt.training.loop import (
    SAVE,
    STOP,
    Task,
    add_row,
    batch_loss,
    check_finite,
    check_sizes,
    evaluation_is_due,
    train,
    update,
    wrap,
)
from chargpt.training.monitor import ALONE, Monitor, Place, Stopped, Surroundings
from chargpt.training.optimizers import AdamW
from chargpt.training.processes import World
from chargpt.training.run import Run
from chargpt.training.schedule import make_schedule
from chargpt.training.start import continued_model, new_model
from tests.conftest import random_model, write_params

IDS = (np.arange(400) ** 2 % 11).astype(np.uint8)  # periodic: learnable
TRAIN, VAL = IDS[:300], IDS[300:]


def params_with(tmp_path: Path, **changes: Any) -> Params:
    return load_params(write_params(tmp_path / "params.yaml", **changes))


def run(params: Params) -> tuple[Any, list[Row]]:
    rows: list[Row] = []
    return train(new_model(params, 11), TRAIN, VAL, params, rows.append), rows


def test_learns_and_records_its_curve(tmp_path: Path) -> None:
    params = params_with(tmp_path, max_iters=120, eval_interval=50, lr=0.01, n_embd=16)
    model, rows = run(params)
    assert [row.step for row in rows] == [0, 50, 100, 120]
    assert rows[0].val_loss == pytest.approx(math.log(11), abs=0.2)
    assert rows[-1].val_loss < 1.0 < rows[0].val_loss
    assert rows[-1].train_loss < rows[1].train_loss
    assert evaluate(model, VAL) == min(row.val_loss for row in rows)
    assert rows[-1].lr == pytest.approx(params.lr * params.final_lr_fraction)


def test_exactly_max_iters_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    monkeypatch.setattr(AdamW, "step", lambda self: steps.append(1))
    run(params_with(tmp_path, max_iters=7))
    assert len(steps) == 7


def test_same_seed_same_weights(tmp_path: Path) -> None:
    weights = []
    for seed in (1, 1, 2):
        model, _ = run(params_with(tmp_path, seed=seed, dropout=0.2))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_best_model_is_kept(tmp_path: Path) -> None:
    """A rate so high that later evaluations are worse than an earlier one."""
    params = params_with(
        tmp_path, lr=1.0, optimizer="adamw", warmup_iters=0, final_lr_fraction=1.0, max_iters=5, eval_interval=1
    )
    model, rows = run(params)
    losses = [row.val_loss for row in rows]
    assert losses[-1] > min(losses)
    assert evaluate(model, VAL) == min(losses)


def test_a_line_is_shown_regularly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no terminal shows a bar: during an evaluation, too."""
    monkeypatch.setattr("chargpt.runtime.progress.TELL_EVERY_S", 0.2)
    progress = Progress(params_with(tmp_path), Stops())
    with progress:
        progress.started(3, 90)
        progress.stepped([])
        progress.stepped([])
        deadline = time.monotonic() + 20
        while progress.told < deadline - 19 and time.monotonic() < deadline:
            time.sleep(0.05)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 7
    assert all(re.fullmatch(r"train: step 5/90, \d+ char/s, \d+ s left", line) for line in lines), lines
    time.sleep(0.5)
    assert capsys.readouterr().err == ""


def test_an_editor_is_told_of_each_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the main checkout, also from a copy. A file that cannot be written is no reason to stop."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    signal_file = machine.step_signal()
    assert signal_file == tmp_path / ".dvc/tmp/exps/run/DVCLIVE_STEP_COMPLETED"
    params = params_with(tmp_path)
    steps = []

    class Reader(Progress):
        def evaluated(self, row: Row) -> None:
            super().evaluated(row)
            steps.append((row.step, json.loads(signal_file.read_text())))

    train(new_model(params, 11), TRAIN, VAL, params, lambda row: None, monitor=Reader(params, Stops(), signal_file))
    assert steps and all(told == {"pid": os.getpid(), "step": step} for step, told in steps)
    assert not signal_file.exists()
    (tmp_path / "file").touch()
    closed = Progress(params, Stops(), tmp_path / "file/signal")
    train(new_model(params, 11), TRAIN, VAL, params, lambda row: None, monitor=closed)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_stopped_in_the_last_evaluation(tmp_path: Path) -> None:
    """Saved and told by exit status like any other stop; then nothing is left to do but to write the model."""
    params = params_with(tmp_path)
    whole, rows = run(params)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop(row: Row) -> None:
        if row.step == params.max_iters:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        stops = Stops()
        with pytest.raises(Stopped), State(tmp_path, {}).locked() as state:
            monitor = Progress(params, stops)
            train(new_model(params, 11), TRAIN, VAL, params, stop, state=state, monitor=monitor)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert stops.status == 143
    again: list[Row] = []
    with State(tmp_path, {}).locked() as state:
        model = train(new_model(params, 11), TRAIN, VAL, params, again.append, state=state)
    assert again == rows
    for name, tensor in model.state_dict().items():
        assert tensor.equal(whole.state_dict()[name])


def test_the_curve_is_not_written_through_a_link(tmp_path: Path) -> None:
    """DVC links outputs to its cache where it is told to."""
    cached, curve = tmp_path / "cached", tmp_path / "curves.tsv"
    for link in (curve.hardlink_to, curve.symlink_to):
        cached.write_text("old")
        link(cached)
        with Curve(curve) as open_curve:
            open_curve.add(Row(0, 1.0, 2.0, 0.1))
        assert (cached.read_text(), curve.read_text().count("\n")) == ("old", 2)
        curve.unlink()


def test_a_diverging_loss_stops(tmp_path: Path) -> None:
    params = params_with(tmp_path)
    model = new_model(params, 11)
    model.lm_head.weight.data[0].fill_(float("nan"))
    with pytest.raises(ChargptError, match=r"step 0: .*validation loss (nan|inf): training diverged, .*-S lr="):
        train(model, TRAIN, VAL, params, lambda row: None)


@pytest.mark.parametrize(("train_loss", "val_loss"), [(math.nan, 1.0), (1.0, math.inf), (math.inf, 1.0)])
def test_one_loss_that_is_no_number_is_enough(toy_params: Params, train_loss: float, val_loss: float) -> None:
    with pytest.raises(ChargptError) as error:
        check_finite(Row(7, train_loss, val_loss, 0.1), toy_params.model_copy(update={"lr": 0.02}))
    assert str(error.value) == (
        f"step 7: training loss {train_loss}, validation loss {val_loss}: training diverged, no model was written;"
        " try a lower rate (-S lr=0.0067), more warmup_iters or grad_clip: 1.0"  # a third of 0.02
    )
    check_finite(Row(7, 1.0, 1.0, 0.1), toy_params)


def test_text_shorter_than_block_size(tmp_path: Path) -> None:
    params = params_with(tmp_path, block_size=300)
    with pytest.raises(ChargptError) as error:
        run(params)
    assert str(error.value) == (
        "the text has 300 characters to train on; block_size=300 needs at least 301: use a longer text or"
        " -S block_size=150"
    )
    alone = World(torch.device("cpu"))
    check_sizes(IDS[:301], params, alone)
    with pytest.raises(ChargptError, match=r"-S block_size=1$"):
        check_sizes(IDS[:1], params, alone)


def test_a_batch_is_shared_evenly_or_refused(tmp_path: Path) -> None:
    params = params_with(tmp_path, batch_size=10)
    for size, better in ((3, 12), (4, 12), (7, 14), (20, 20)):
        with pytest.raises(ChargptError) as error:
            check_sizes(TRAIN, params, World(torch.device("cpu"), Place(0, size)))
        assert str(error.value) == (
            f"batch_size=10 cannot be shared evenly by {size} processes; try -S batch_size={better}"
        )
    for size in (1, 2, 5, 10):
        check_sizes(TRAIN, params, World(torch.device("cpu"), Place(0, size)))


class Listener(Monitor):
    """Notes what it is told, and stops the run at a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.events: list[Any] = []
        self.said: list[str] = []
        self.step = 0
        self.stop_at = stop_at

    def __enter__(self) -> Listener:
        self.events.append("enter")
        return self

    def __exit__(self, *_: object) -> None:
        self.events.append("exit")

    def say(self, text: str) -> None:
        self.said.append(text)

    def started(self, step: int, max_iters: int) -> None:
        self.step, self.max_iters = step, max_iters
        self.events.append(("started", step))

    def stepped(self, losses: Sequence[Tensor]) -> None:
        self.step += 1
        self.events.append(("stepped", len(losses)))

    def evaluated(self, row: Row) -> None:
        self.events.append(("evaluated", row.step))

    def stop_reason(self) -> str:
        self.events.append("asked")
        return "enough" if self.step == self.stop_at else ""


def test_what_a_monitor_is_told(tmp_path: Path) -> None:
    params = params_with(tmp_path, max_iters=5, eval_interval=2)
    monitor, rows = Listener(), []
    train(new_model(params, 11), TRAIN, VAL, params, rows.append, monitor=monitor)
    first = ["enter", ("started", 0), ("evaluated", 0), "asked", ("stepped", 1), "asked", ("stepped", 2)]
    second = [("evaluated", 2), "asked", ("stepped", 1), "asked", ("stepped", 2)]
    last = [("evaluated", 4), "asked", ("stepped", 1), ("evaluated", 5), "asked", "exit"]
    assert monitor.events == [*first, *second, *last]
    best = min(row.val_loss for row in rows)
    assert monitor.said == [f"done; the weights of the lowest validation loss, {best:.4f}, are kept"]


def test_a_short_text_ends_a_run_early(tmp_path: Path) -> None:
    windows = (len(TRAIN) - 1) // 8 - 1
    params = params_with(tmp_path, max_iters=1000, eval_interval=500, max_epochs=2)
    updates = math.ceil(2 * windows / params.batch_size)
    monitor, rows = Listener(), []
    train(new_model(params, 11), TRAIN, VAL, params, rows.append, monitor=monitor)
    assert [row.step for row in rows] == [0, math.ceil(updates / 2), updates]
    assert rows[-1].lr == 0
    assert monitor.max_iters == updates
    said = f"2 epochs of this text are {updates} updates, fewer than max_iters=1000; a higher max_epochs trains longer"
    assert monitor.said[0] == said


def test_only_the_first_process_speaks_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two, without the first: it is stopped, and neither says so nor saves."""
    monkeypatch.setattr(loop, "wrap", lambda model, params, world: model)
    monkeypatch.setattr(World, "max", lambda self, value: value)
    monkeypatch.setattr(World, "mean", lambda self, value: value)
    monkeypatch.setattr(World, "gather", lambda self, value: value[None])
    params = params_with(tmp_path)
    monitor, rows, state = Listener(stop_at=0), [], State(tmp_path, {}, save_every_s=0)
    world = World(torch.device("cpu"), Place(1, 2))
    with pytest.raises(Stopped):
        train(new_model(params, 11), TRAIN, VAL, params, rows.append, state=state, world=world, monitor=monitor)
    assert (monitor.said, rows) == ([], [])
    assert monitor.events == ["enter", "asked", "exit"]
    assert not state.path.exists()


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_stopped_at_any_step_it_ends_with_the_same_bytes(tmp_path: Path, optimizer: str) -> None:
    params = params_with(tmp_path, optimizer=optimizer, dropout=0.2, lr=0.3, max_iters=7, eval_interval=3)
    whole, rows = run(params)
    for step in range(8):
        state = State(tmp_path / "states", {"step": str(step)})
        monitor, told = Listener(stop_at=step), []
        with pytest.raises(Stopped):
            train(new_model(params, 11), TRAIN, VAL, params, told.append, state=state, monitor=monitor)
        assert told == [row for row in rows if row.step <= step]
        assert monitor.said == [f"stopped (enough); saved at step {step}, run again to go on"]
        assert monitor.events[-1] == "exit"
        monitor, told = Listener(), []
        other = new_model(params_with(tmp_path, seed=7, dropout=0.2), 11)  # its weights are replaced
        model = train(other, TRAIN, VAL, params, told.append, state=state, monitor=monitor)
        assert monitor.said[0] == f"continuing at step {step}"
        assert ("started", step) in monitor.events
        assert all(("evaluated", before) not in monitor.events for before in range(step + 1))
        assert told == rows
        assert all(torch.equal(t, model.state_dict()[name]) for name, t in whole.state_dict().items())


def test_the_best_weights_are_saved_too(tmp_path: Path) -> None:
    """Stopped behind a lowest loss that is not reached again."""
    changes = {"optimizer": "adamw", "lr": 1.0, "warmup_iters": 0, "final_lr_fraction": 1.0}
    params = params_with(tmp_path, max_iters=5, eval_interval=1, **changes)
    whole, rows = run(params)
    best = min(rows, key=lambda row: row.val_loss).step
    assert best < params.max_iters
    state = State(tmp_path, {})
    with pytest.raises(Stopped):
        train(
            new_model(params, 11), TRAIN, VAL, params, lambda row: None, state=state, monitor=Listener(stop_at=best + 1)
        )
    model = train(new_model(params, 11), TRAIN, VAL, params, lambda row: None, state=state)
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in whole.state_dict().items())


def test_a_continued_run_has_its_threads(tmp_path: Path) -> None:
    """Their number shows in the last bits."""
    params, state = params_with(tmp_path), State(tmp_path, {})
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with pytest.raises(Stopped):
            train(new_model(params, 11), TRAIN, VAL, params, lambda row: None, state=state, monitor=Listener(3))
        torch.set_num_threads(2)
        train(new_model(params, 11), TRAIN, VAL, params, lambda row: None, state=state)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_stopped_without_a_place_to_save(toy_params: Params) -> None:
    monitor = Listener(stop_at=3)
    with pytest.raises(Stopped):
        train(new_model(toy_params, 11), TRAIN, VAL, toy_params, lambda row: None, monitor=monitor)
    assert monitor.said == ["stopped (enough); not saved, run again to go on"]


class Shelf(State):
    """A state that is not written: it notes at which steps it would be, and fails to if told so."""

    def __init__(self, is_due: bool, works: bool = True) -> None:
        self.is_due, self.works = is_due, works
        self.steps: list[int] = []

    def due(self) -> bool:
        return self.is_due

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bool:
        self.steps.append(facts["step"])
        return self.works

    def load(self) -> None:
        return None


def test_the_state_is_saved_when_it_is_due(toy_params: Params) -> None:
    for due, steps in ((True, list(range(11))), (False, [])):
        state, monitor = Shelf(due), Listener()
        train(new_model(toy_params, 11), TRAIN, VAL, toy_params, lambda row: None, state=state, monitor=monitor)
        assert state.steps == steps
        assert [said.split(";")[0] for said in monitor.said] == ["done"]


def test_a_state_that_could_not_be_saved_is_said(toy_params: Params) -> None:
    state, monitor = Shelf(False, works=False), Listener(stop_at=3)
    with pytest.raises(Stopped):
        train(new_model(toy_params, 11), TRAIN, VAL, toy_params, lambda row: None, state=state, monitor=monitor)
    assert (state.steps, monitor.said) == ([3], ["stopped (enough); not saved, run again to go on"])


def test_one_process_that_stops_stops_all(toy_params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "max", lambda self, value: max(value, STOP))  # the other one's wish
    monitor, state = Listener(), Shelf(False)
    with pytest.raises(Stopped):
        train(new_model(toy_params, 11), TRAIN, VAL, toy_params, lambda row: None, state=state, monitor=monitor)
    assert (state.steps, monitor.said) == ([0], ["stopped (another process); saved at step 0, run again to go on"])
    monkeypatch.setattr(World, "max", lambda self, value: max(value, SAVE))
    train(new_model(toy_params, 11), TRAIN, VAL, toy_params, lambda row: None, state=state)
    assert state.steps[1:] == list(range(11))


def task_of(params: Params, place: Place = ALONE, dtype: torch.dtype = torch.float32) -> tuple[Run, Task]:
    model = new_model(params, 11).train()
    schedule = make_schedule(params, len(TRAIN))
    world = World(torch.device("cpu"), place)
    return Run(model, params, dtype), Task(model, TRAIN, VAL, params, world, dtype, schedule)


def test_an_update_moves_the_weights_against_their_gradient(tmp_path: Path) -> None:
    """With plain gradient descent in the optimizers' place: by the rate of the schedule, clipped to a norm."""
    for grad_clip in (0.0, 0.001):
        params = params_with(tmp_path, lr=0.5, warmup_iters=3, grad_clip=grad_clip)
        run, task = task_of(params)
        run.optimizers = [torch.optim.SGD(run.model.parameters(), lr=100.0)]
        for step, rate in enumerate((0.125, 0.25, 0.375, 0.5)):
            before = [p.detach().clone() for p in run.model.parameters()]
            loss = batch_loss(step, task)
            gradients = torch.autograd.grad(loss, list(run.model.parameters()))
            norm = torch.cat([g.flatten() for g in gradients]).norm().item()
            assert norm > 0.01
            update(run, task)
            scale = rate * (grad_clip / norm if grad_clip else 1)
            for p, old, gradient in zip(run.model.parameters(), before, gradients, strict=True):
                torch.testing.assert_close(p.detach(), old - scale * gradient, rtol=1e-3, atol=1e-7)
                assert p.grad is None
            assert run.step == step + 1
            assert run.losses[step].item() == pytest.approx(loss.item()) and not run.losses[step].requires_grad


def test_each_process_computes_its_share_of_a_batch(tmp_path: Path) -> None:
    params = params_with(tmp_path, batch_size=6)
    whole = batch_loss(5, task_of(params)[1]).item()
    parts = [batch_loss(5, task_of(params, Place(rank, 3))[1]).item() for rank in range(3)]
    assert len(set(parts)) == 3
    assert sum(parts) / 3 == pytest.approx(whole, rel=1e-5)
    idx, targets = map(torch.from_numpy, training_batch(TRAIN, params.block_size, 6, params.seed, 5))
    expected = F.cross_entropy(new_model(params, 11)(idx).mT, targets).item()
    assert whole == pytest.approx(expected, rel=1e-5)


def test_matrix_products_are_in_the_number_format(toy_params: Params) -> None:
    seen = []
    for dtype in (torch.float32, torch.bfloat16):
        _, task = task_of(toy_params, dtype=dtype)
        task.net.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))  # type: ignore[attr-defined]
        assert batch_loss(0, task).dtype == torch.float32
    assert seen == [torch.float32, torch.bfloat16]


def test_dropout_follows_from_seed_step_and_process(tmp_path: Path) -> None:
    def loss(seed: int, step: int, place: Place = ALONE) -> float:
        params = params_with(tmp_path, dropout=0.5, seed=seed)
        _, task = task_of(params, place)
        task.net.load_state_dict(weights)  # type: ignore[attr-defined]
        patch.setattr(loop, "training_batch", lambda *_: (np.zeros((4, 8), np.int64), np.zeros((4, 8), np.int64)))
        torch.manual_seed(99)
        return batch_loss(step, task).item()

    weights = random_model(GPTConfig(11, 8, 1, 2, 8)).state_dict()
    with pytest.MonkeyPatch.context() as patch:
        first = loss(1, 0)
        assert loss(1, 0) == first
        others = [loss(1, step) for step in range(1, 4)] + [loss(seed, 0) for seed in (0, 2, 2**63 - 1)]
        others += [loss(1, 0, Place(rank, 2)) for rank in (0, 1)]  # of half the batch
        assert len({first, *others}) == 9


def test_when_to_evaluate(tmp_path: Path) -> None:
    params = params_with(tmp_path, max_iters=10, eval_interval=4)
    run, task = task_of(params)
    due = []
    for run.step in range(11):
        if evaluation_is_due(run, task.schedule):
            due.append(run.step)
            run.rows.append(Row(run.step, 1.0, 1.0, 0.1))
            assert not evaluation_is_due(run, task.schedule), "not twice"
    assert due == [0, 4, 8, 10]


def test_a_row_is_of_the_batches_since_the_last(toy_params: Params) -> None:
    run, task = task_of(toy_params)
    first = add_row(run, task)
    assert first.train_loss == pytest.approx(batch_loss(0, task).item(), rel=1e-5)
    assert (first.step, first.lr) == (0, pytest.approx(toy_params.lr / 3))
    assert first.val_loss == evaluate(run.model, VAL)
    run.losses += [torch.tensor(1.0), torch.tensor(4.0)]
    run.step = 5
    second = add_row(run, task)
    assert (second.step, second.train_loss) == (5, 2.5)
    assert run.rows == [first, second]
    assert run.losses == []
    assert run.model.training


def test_training_compiles_and_shares_where_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self, net: torch.nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, idx: Tensor) -> Tensor:
            called.append(idx)
            return self.net(idx)

    class Shared(Wrapped):
        pass

    called: list[Tensor] = []
    monkeypatch.setattr(loop, "DistributedDataParallel", Shared)
    monkeypatch.setattr(torch, "compile", Wrapped)
    plain, compiled = params_with(tmp_path), params_with(tmp_path, compile=True)
    alone, two = World(torch.device("cpu")), World(torch.device("cpu"), Place(0, 2))
    model = new_model(plain, 11)
    assert wrap(model, plain, alone) is model
    net = wrap(model, plain, two)
    assert type(net) is Shared and net.net is model
    assert not called
    net = wrap(model, compiled, two)
    assert type(net) is Wrapped and type(net.net) is Shared
    assert called[0].shape == (1, plain.block_size) and called[0].dtype == torch.int64
    assert all(p.grad is None for p in model.parameters()), "trying it out leaves nothing"
    elsewhere = torch.device("meta")
    wrap(model.to(elsewhere), compiled, World(elsewhere))
    assert called[-1].device == elsewhere


@pytest.mark.parametrize(("words", "reason"), [("\n no g++\nmore", "no g++"), ("x" * 300, "x" * 200), ("", "OSError")])
def test_what_cannot_be_compiled_is_one_line(tmp_path: Path, words: str, reason: str, monkeypatch: Any) -> None:
    def compiled(net: object) -> Any:
        def call(idx: Tensor) -> Tensor:
            raise OSError(words)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    params = params_with(tmp_path, compile=True)
    with pytest.raises(ChargptError) as error:
        wrap(new_model(params, 11), params, World(torch.device("cpu")))
    assert str(error.value) == f"compile: true does not work here ({reason}); use -S compile=false"


def test_a_run_keeps_the_weights_of_its_lowest_loss(toy_params: Params) -> None:
    """Of equal losses, those of the first."""
    run, _ = task_of(toy_params)
    assert (run.step, run.rows, run.losses, run.best_loss) == (0, [], [], math.inf)
    kept = []
    for number, loss in enumerate((3.0, 2.0, 2.0, 2.5, 1.0)):
        run.model.lm_head.bias.data.fill_(number)
        run.keep_if_best(loss)
        kept.append((run.best_loss, run.best["lm_head.bias"][0].item()))
    assert kept == [(3.0, 0), (2.0, 1), (2.0, 1), (2.0, 1), (1.0, 4)]


def test_a_new_model_follows_from_the_seed(tmp_path: Path) -> None:
    weights = []
    for seed in (1, 1, 2):
        params = params_with(tmp_path, seed=seed, n_layer=2, n_head=4, n_embd=16, block_size=5, dropout=0.25)
        torch.manual_seed(len(weights))
        model = new_model(params, 11)
        assert model.config == GPTConfig(11, 5, 2, 4, 16, dropout=0.25, activation="gelu", attention_scale="head")
        weights.append(model.wte.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_migrated_model_of_another_shape(toy_params: Params) -> None:
    migrated = random_model(GPTConfig(11, 16, 3, 2, 8, activation="relu", attention_scale="embedding"))
    with pytest.raises(ChargptError) as error:
        continued_model(migrated, toy_params)
    assert str(error.value) == (
        "params.yaml does not fit init=migrated: n_layer is 1, the migrated model has 3; block_size is 8, the migrated"
        " model has 16; use -S n_layer=3 -S block_size=16"
    )
    with pytest.raises(
        ChargptError, match="n_head is 2, the migrated model has 3; n_embd is 8, the migrated model has 12"
    ):
        continued_model(random_model(GPTConfig(11, 8, 1, 3, 12)), toy_params)


def test_migrated_model_starts_where_it_was(toy_params: Params) -> None:
    migrated = random_model(GPTConfig(11, 8, 1, 2, 8, activation="relu", attention_scale="embedding"))
    before = {name: t.clone() for name, t in migrated.state_dict().items()}
    rows: list[Row] = []
    model = train(continued_model(migrated, toy_params), TRAIN, VAL, toy_params, rows.append)
    assert rows[0].val_loss == evaluate(migrated, VAL)
    assert (model.config.activation, model.config.attention_scale) == ("relu", "embedding")
    assert all(torch.equal(t, before[name]) for name, t in migrated.state_dict().items()), "it is not trained itself"


def test_a_migrated_model_has_the_dropout_of_params_yaml(tmp_path: Path) -> None:
    migrated = random_model(GPTConfig(11, 8, 1, 2, 8, dropout=0.1))
    assert continued_model(migrated, params_with(tmp_path, dropout=0.4)).config.dropout == 0.4


def test_nobody_watches_by_default() -> None:
    """A monitor says nothing and stops nothing; a program around a training provides nothing."""
    with Monitor() as monitor:
        assert isinstance(monitor, Monitor)
        assert monitor.stop_reason() == ""
    with pytest.raises(KeyError), Monitor():
        raise KeyError
    around = Surroundings()
    assert type(around.monitor) is Monitor and around.monitor is not Surroundings().monitor
    assert (around.state_root, around.fresh, around.runs_here, around.reread) == (None, False, 1, None)
    assert (around.save_every_s, around.place) == (15.0, Place(rank=0, size=1, local_rank=0))
    for fixed, name in ((around, "fresh"), (around.place, "rank"), (Row(0, 1.0, 1.0, 0.1), "step")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(fixed, name, 1)


def test_the_curve_can_be_read_while_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "a" / "metrics" / "curves.tsv"
    with Curve(str(path)) as curve:
        assert not path.parent.exists(), "nothing before the first row"
        for count in (1, 2):
            curve.add(Row(count, 1.5, 2.25, 1e-3))
            assert path.read_text().splitlines()[1:] == [f"{i}\t1.500000\t2.250000\t0.001" for i in range(1, count + 1)]
    assert path.read_bytes().startswith(b"step\ttrain_loss\tval_loss\tlr\n1\t")
    assert curve.file and curve.file.closed
    with Curve(path) as curve:
        curve.add(Row(3, 1.0, 1.0, 1.0))
    assert path.read_text().count("\n") == 2, "a new run begins anew"


def test_row_prints_as_tsv() -> None:
    assert str(Row(5, 1.5, 2.25, 1e-3)) == "5\t1.500000\t2.250000\t0.001\n"
    assert str(Row(10, 1 / 3, 200, 1e-5 / 3)) == "10\t0.333333\t200.000000\t3.3333333e-06\n"


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([(4.0, 4.0), (1.5, 1.6), (1.3, 1.5)], ""),
        ([(4.0, 4.0), (1.2, 1.5), (1.0, 1.509)], "the training loss is 0.51 below the validation loss; try fewer"),
        ([(4.0, 4.0), (1.2, 1.5), (1.1, 1.509)], "the training loss is 0.41 below the validation loss; try fewer"),
        ([(4.0, 4.0), (1.2, 1.5), (1.11, 1.509)], ""),
        ([(4.0, 4.0), (1.5, 1.6), (1.3, 1.6105)], "rose from 1.6000 at step 100 to 1.6105; try -S max_iters=100, a"),
        ([(4.0, 4.0), (2.5, 4.5), (0.3, 6.5)], "rose from 4.0000 at step 0 to 6.5000; try -S max_iters=50, a"),
        ([(4.0, 4.0)], ""),
    ],
)
def test_overfitting_is_told(losses: list[tuple[float, float]], said: str) -> None:
    told = overfitting([Row(100 * i, train, val, 0.1) for i, (train, val) in enumerate(losses)])
    assert (said in told and told.startswith("the model overfits: ")) if said else not told
