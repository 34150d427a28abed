from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from chargpt.errors import ChargptError
from chargpt.evaluation.curve import Row
from chargpt.evaluation.loss import evaluate
from chargpt.model.config import GPTConfig
from chargpt.model.gpt import GPT
from chargpt.params import Params
from chargpt.project.params_file import load_params
from chargpt.text.documents import Documents
from chargpt.text.tokens import training_batch
from chargpt.training import loop
from chargpt.training.checkpoint import CheckpointStore
from chargpt.training.events import ALONE, Event, Log, Rank, Started, Stepped, Stopped
from chargpt.training.loop import SAVE, STOP, Trainer, check_sizes
from chargpt.training.processes import ProcessGroup
from chargpt.training.start import new_model
from tests.conftest import random_model, write_params

CPU = torch.device("cpu")
IDS = (np.arange(400) ** 2 % 11).astype(np.uint8)  # periodic: learnable
TRAIN, VAL = IDS[:300], IDS[300:]


def params_with(tmp_path: Path, **changes: Any) -> Params:
    return load_params(write_params(tmp_path / "params.yaml", **changes))


class Listener:
    """Keeps the events of a training, and stops it at a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.events: list[Event] = []
        self.rows: list[Row] = []
        self.step, self.stop_at = 0, stop_at

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.step = event.step if isinstance(event, Started | Stepped) else self.step
        self.rows += event.rows if isinstance(event, Started) else [event] if isinstance(event, Row) else []

    def should_stop(self) -> Stopped | None:
        """Also during the evaluation at the step, which is abandoned."""
        return Stopped("enough", 7) if self.step == self.stop_at else None

    @property
    def log(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Log)]


def start(params: Params, listener: Listener | None = None, model: GPT | None = None, **options: Any) -> Trainer:
    listener = listener or Listener()
    model = model or new_model(params, 11)
    parts = (TRAIN, VAL) if params.documents == "whole" else (documents(TRAIN), documents(VAL))
    return Trainer(model, *parts, params, report=listener, should_stop=listener.should_stop, **options)


def documents(ids: NDArray[np.uint8]) -> Documents:
    """Documents of 1 to 19 characters."""
    return Documents(ids, np.unique(np.append(np.cumsum(np.arange(1, 20)) + 1, len(ids))))


def run(params: Params, **options: Any) -> tuple[GPT, list[Row]]:
    listener = Listener()
    return start(params, listener, **options).train(), listener.rows


def assert_same(model: GPT, other: GPT) -> None:
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in model.state_dict().items())


def test_training_learns_and_reports_its_curve(tmp_path: Path) -> None:
    params = params_with(tmp_path, max_iters=120, eval_interval=50, lr=0.01, n_embd=16)
    model, rows = run(params)
    assert [row.step for row in rows] == [0, 50, 100, 120]
    assert rows[0].val_loss == pytest.approx(math.log(11), abs=0.2)
    assert rows[-1].val_loss < 1.0 < rows[0].val_loss
    assert rows[-1].train_loss < rows[1].train_loss
    assert evaluate(model, VAL) == min(row.val_loss for row in rows)
    assert rows[-1].lr == pytest.approx(params.lr * params.final_lr_fraction)


def test_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    weights = []
    for seed in (1, 1, 2):
        model, _ = run(params_with(tmp_path, seed=seed, dropout=0.2))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


BAD_RATE = {"lr": 1.0, "optimizer": "adamw", "warmup_iters": 0, "final_lr_fraction": 1.0, "eval_interval": 1}


def test_the_best_weights_are_kept_and_saved(tmp_path: Path) -> None:
    """With a rate so high that later evaluations are worse; also after a stop behind the lowest loss."""
    params = params_with(tmp_path, max_iters=5, init="migrated", **BAD_RATE)
    model, rows = run(params)
    losses = [row.val_loss for row in rows]
    best = losses.index(min(losses))
    assert best < 5 and evaluate(model, VAL) == min(losses)
    store = CheckpointStore(tmp_path / "checkpoints", {})
    with pytest.raises(Stopped):
        start(params, Listener(stop_at=best + 1), store=store).train()
    assert_same(run(params, store=store)[0], model)


def test_of_equal_losses_the_first_weights_are_kept(toy_params: Params) -> None:
    state = start(toy_params).state
    kept = []
    for number, loss in enumerate((3.0, 2.0, 2.0, 2.5, 1.0)):
        state.model.lm_head.bias.data.fill_(number)
        state.add_row(Row(number, 1.0, loss, 0.1))
        kept.append((state.best_loss, state.best["lm_head.bias"][0].item()))
    assert kept == [(3.0, 0), (2.0, 1), (2.0, 1), (2.0, 1), (1.0, 4)]


@pytest.mark.parametrize(("train_loss", "val_loss"), [(math.nan, 1.0), (1.0, math.inf), (math.inf, 1.0)])
def test_one_infinite_loss_is_enough(
    toy_params: Params, monkeypatch: pytest.MonkeyPatch, train_loss: float, val_loss: float
) -> None:
    monkeypatch.setattr(loop, "evaluate", lambda *_: val_loss)
    trainer = start(toy_params)
    trainer.state.losses = [torch.tensor(train_loss)]
    with pytest.raises(ChargptError, match=f"step 0: training loss {train_loss}, validation loss {val_loss}"):
        trainer.evaluate()


def test_a_text_shorter_than_block_size_is_refused(tmp_path: Path) -> None:
    params = params_with(tmp_path, block_size=300)
    with pytest.raises(ChargptError) as error:
        run(params)
    assert str(error.value) == (
        "the text has 300 characters to train on; block_size=300 needs at least 301: use a longer text or"
        " -S block_size=150"
    )
    check_sizes(IDS[:301], params, ProcessGroup(CPU))
    with pytest.raises(ChargptError, match=r"-S block_size=1$"):
        check_sizes(IDS[:1], params, ProcessGroup(CPU))


def test_a_batch_is_shared_evenly_or_refused(tmp_path: Path) -> None:
    params = params_with(tmp_path, batch_size=10)
    for size, better in ((3, 12), (4, 12), (7, 14), (20, 20)):
        with pytest.raises(ChargptError) as error:
            check_sizes(TRAIN, params, ProcessGroup(CPU, Rank(0, size)))
        assert str(error.value) == (
            f"batch_size=10 cannot be shared evenly by {size} processes; try -S batch_size={better}"
        )
    for size in (1, 2, 5, 10):
        check_sizes(TRAIN, params, ProcessGroup(CPU, Rank(0, size)))


def test_events_are_reported_in_order(tmp_path: Path) -> None:
    params = params_with(tmp_path, max_iters=5, eval_interval=2)
    listener = Listener()
    start(params, listener).train()
    seen = [(type(event).__name__, getattr(event, "step", None)) for event in listener.events]
    first = [("Started", 0), ("Row", 0), ("Stepped", 1), ("Stepped", 2), ("Row", 2)]
    assert seen == [*first, ("Stepped", 3), ("Stepped", 4), ("Row", 4), ("Stepped", 5), ("Row", 5), ("Log", None)]
    best = min(row.val_loss for row in listener.rows)
    assert listener.log == [f"done; kept the weights with the lowest validation loss, {best:.4f}"]
    assert all(event.loss.ndim == 0 for event in listener.events if isinstance(event, Stepped))


@pytest.fixture
def unwrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers of several processes that are not there."""
    monkeypatch.setattr(Trainer, "wrap", lambda self: self.model)
    for name in ("max", "mean", "broadcast"):
        monkeypatch.setattr(ProcessGroup, name, lambda self, value: value)
    monkeypatch.setattr(ProcessGroup, "gather", lambda self, value: value[None])


@pytest.mark.usefixtures("unwrapped")
def test_only_rank_0_reports_and_saves(tmp_path: Path) -> None:
    """The second of two processes, without the first."""
    listener, store = Listener(stop_at=0), CheckpointStore(tmp_path / "checkpoints", {}, save_every_s=0)
    listener.should_stop = lambda: Stopped("enough")  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        start(params_with(tmp_path), listener, store=store, group=ProcessGroup(CPU, Rank(1, 2))).train()
    assert listener.events == []
    assert not store.path.exists()


@pytest.mark.parametrize("change", [{"optimizer": "muon"}, {"optimizer": "adamw"}, {"documents": "lines"}])
def test_stopped_at_any_step_it_ends_with_the_same_bytes(tmp_path: Path, change: dict[str, str]) -> None:
    params = params_with(tmp_path, dropout=0.2, lr=0.3, max_iters=7, eval_interval=5, **change)
    whole, rows = run(params)
    for step in range(8):
        store = CheckpointStore(tmp_path / "checkpoints", {"step": str(step)})
        listener = Listener(stop_at=step)
        with pytest.raises(Stopped) as stopped:
            start(params, listener, store=store).train()
        assert (stopped.value.reason, stopped.value.status) == ("enough", 7)
        assert listener.rows == [row for row in rows if row.step < step]
        assert listener.log == [f"stopped (enough); saved at step {step}. Run the same command to continue."]
        before = tuple(listener.rows)
        listener = Listener()
        other = new_model(params_with(tmp_path, seed=7, dropout=0.2), 11)  # its weights are replaced
        model = start(params, listener, other, store=store).train()
        assert listener.events[0] == Started(step, 7, 32, before)
        assert listener.log[0] == f"continuing at step {step}"
        assert listener.rows == rows
        assert_same(whole, model)


@pytest.mark.parametrize("step", [0, 5, 10])
def test_stopped_after_an_evaluation_it_is_not_made_again(tmp_path: Path, step: int) -> None:
    params, store = params_with(tmp_path), CheckpointStore(tmp_path / "checkpoints", {})
    whole, rows = run(params)
    listener = Listener()
    listener.should_stop = lambda: Stopped("enough") if step in [row.step for row in listener.rows] else None  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        start(params, listener, store=store).train()
    assert listener.rows == [row for row in rows if row.step <= step]
    again = Listener()
    assert_same(start(params, again, store=store).train(), whole)
    assert again.rows == rows
    assert not [event for event in again.events if isinstance(event, Row) and event.step <= step]


def test_a_continued_run_uses_as_many_threads_as_before(tmp_path: Path) -> None:
    """Their number affects the last bits."""
    params, store = params_with(tmp_path), CheckpointStore(tmp_path / "checkpoints", {})
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with pytest.raises(Stopped):
            start(params, Listener(3), store=store).train()
        torch.set_num_threads(2)
        run(params, store=store)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def saves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps of the checkpoints, which are not written."""
    steps: list[int] = []
    monkeypatch.setattr(CheckpointStore, "save", lambda self, _, facts: steps.append(facts["step"]) is None)
    return steps


@pytest.mark.parametrize(("every_s", "steps"), [(0.0, list(range(11))), (1000.0, [])])
def test_a_checkpoint_is_saved_when_it_is_due(
    toy_params: Params, tmp_path: Path, saves: list[int], every_s: float, steps: list[int]
) -> None:
    listener = Listener()
    start(toy_params, listener, store=CheckpointStore(tmp_path, {}, save_every_s=every_s)).train()
    assert saves == steps
    assert [line.split(";")[0] for line in listener.log] == ["done"]


@pytest.mark.parametrize("has_store", [False, True])
def test_a_stop_without_a_checkpoint_says_so(
    toy_params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_store: bool
) -> None:
    monkeypatch.setattr(CheckpointStore, "save", lambda *_: False)
    listener = Listener(stop_at=3)
    with pytest.raises(Stopped):
        start(toy_params, listener, store=CheckpointStore(tmp_path, {}) if has_store else None).train()
    assert listener.log == ["stopped (enough); not saved. Run the same command to continue."]


def test_one_process_that_stops_stops_all(
    toy_params: Params, tmp_path: Path, saves: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[int] = [0, STOP, *[SAVE] * 30]  # by the other process: in the evaluation, then before each step
    monkeypatch.setattr(ProcessGroup, "max", lambda self, value: max(value, requested.pop(0)))
    listener = Listener()
    with pytest.raises(Stopped):
        start(toy_params, listener, store=CheckpointStore(tmp_path, {})).train()
    assert saves == [0]
    assert listener.log == ["stopped (another rank stopped); saved at step 0. Run the same command to continue."]


def test_a_step_moves_the_weights_against_their_gradient(tmp_path: Path) -> None:
    """By the rate of the schedule, and clipped to a norm."""
    for grad_clip in (0.0, 0.001):
        params = params_with(tmp_path, lr=0.5, warmup_iters=3, grad_clip=grad_clip, max_iters=4, eval_interval=100)
        trainer = start(params)
        trainer.state.optimizers = [torch.optim.SGD(trainer.model.parameters(), lr=100.0)]
        weights, losses = [[p.detach().clone() for p in trainer.model.parameters()]], []

        def keep(event: Event, trainer: Trainer = trainer, weights: Any = weights, losses: Any = losses) -> None:
            if isinstance(event, Stepped):
                assert all(p.grad is None for p in trainer.model.parameters())
                weights.append([p.detach().clone() for p in trainer.model.parameters()])
                losses.append(event.loss)

        trainer._report = keep
        trainer.train()
        for step, rate in enumerate((0.125, 0.25, 0.375, 0.5)):
            probe = start(params)
            for p, value in zip(probe.model.parameters(), weights[step], strict=True):
                p.data.copy_(value)
            loss = probe.loss(step)
            gradients = torch.autograd.grad(loss, list(probe.model.parameters()))
            norm = torch.cat([g.flatten() for g in gradients]).norm().item()
            assert norm > 0.01
            scale = rate * (grad_clip / norm if grad_clip else 1)
            for new, old, gradient in zip(weights[step + 1], weights[step], gradients, strict=True):
                torch.testing.assert_close(new, old - scale * gradient, rtol=1e-3, atol=1e-7)
            assert losses[step].item() == pytest.approx(loss.item()) and not losses[step].requires_grad


@pytest.mark.usefixtures("unwrapped")
def test_each_process_computes_its_share_of_a_batch(tmp_path: Path) -> None:
    params = params_with(tmp_path, batch_size=6, dtype="float32")
    whole = start(params).loss(5).item()
    parts = [start(params, group=ProcessGroup(CPU, Rank(rank, 3))).loss(5).item() for rank in range(3)]
    assert len(set(parts)) == 3
    assert sum(parts) / 3 == pytest.approx(whole, rel=1e-5)
    idx, targets = map(torch.from_numpy, training_batch(TRAIN, params.block_size, 6, params.seed, 5))
    assert whole == pytest.approx(F.cross_entropy(new_model(params, 11)(idx).mT, targets).item(), rel=1e-5)


def test_matrix_products_have_the_training_dtype(tmp_path: Path) -> None:
    seen = []
    for dtype in ("float32", "bfloat16"):
        trainer = start(params_with(tmp_path, dtype=dtype))
        trainer.model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
        assert trainer.loss(0).dtype == torch.float32
    assert seen == [torch.float32, torch.bfloat16]


@pytest.mark.usefixtures("unwrapped")
def test_dropout_follows_from_seed_step_and_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = random_model(GPTConfig(11, 8, 1, 2, 8)).state_dict()
    monkeypatch.setattr(loop, "training_batch", lambda *_: (np.zeros((4, 8), np.int64), np.zeros((4, 8), np.int64)))

    def loss(seed: int, step: int, rank: Rank = ALONE) -> float:
        trainer = start(params_with(tmp_path, dropout=0.5, seed=seed), group=ProcessGroup(CPU, rank))
        trainer.model.load_state_dict(weights)
        torch.manual_seed(99)
        return trainer.loss(step).item()

    first = loss(1, 0)
    assert loss(1, 0) == first
    others = [loss(1, step) for step in range(1, 4)] + [loss(seed, 0) for seed in (0, 2, 2**32 - 1)]
    others += [loss(1, 0, Rank(rank, 2)) for rank in (0, 1)]  # of half the batch
    assert len({first, *others}) == 9


def test_a_row_averages_the_batches_since_the_last(toy_params: Params) -> None:
    trainer = start(toy_params)
    state = trainer.state
    trainer.evaluate()
    first = state.rows[0]
    assert first.train_loss == pytest.approx(trainer.loss(0).item(), rel=1e-5)
    assert (first.step, first.lr) == (0, pytest.approx(toy_params.lr / 3))
    assert first.val_loss == evaluate(trainer.model, VAL)
    state.losses += [torch.tensor(1.0), torch.tensor(4.0)]
    trainer.evaluate()
    assert state.rows == [first], "not twice at one step"
    state.step = 5
    trainer.evaluate()
    assert (state.rows[1].step, state.rows[1].train_loss, len(state.rows)) == (5, 2.5, 2)
    assert state.losses == []
    assert trainer.model.training


def test_the_model_is_shared_and_compiled_with_the_shape_and_dtype_of_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self, net: torch.nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, idx: Tensor) -> Tensor:
            called.append((idx.shape, idx.dtype, torch.is_autocast_enabled("cpu")))
            return self.net(idx)

    class Shared(Wrapped):
        pass

    called: list[Any] = []
    monkeypatch.setattr(ProcessGroup, "broadcast", lambda self, checkpoint: checkpoint)
    monkeypatch.setattr(loop, "DistributedDataParallel", Shared)
    monkeypatch.setattr(torch, "compile", Wrapped)
    trainer = start(params_with(tmp_path))
    assert trainer.net is trainer.model
    two = ProcessGroup(CPU, Rank(0, 2))
    trainer = start(params_with(tmp_path), group=two)
    assert type(trainer.net) is Shared and trainer.net.net is trainer.model
    assert not called
    trainer = start(params_with(tmp_path, compile=True, dtype="bfloat16"), group=two)
    assert type(trainer.net) is Wrapped and type(trainer.net.net) is Shared
    assert called == [((2, 8), torch.int64, True)] * 2, "half of the batch"
    assert all(p.grad is None for p in trainer.model.parameters()), "trying it out leaves nothing"
    trainer.loss(0)
    assert called[-1] == called[0]


@pytest.mark.parametrize(("words", "reason"), [("\n no g++\nmore", "no g++"), ("x" * 300, "x" * 200), ("", "OSError")])
def test_a_model_that_cannot_be_compiled_is_one_line(
    tmp_path: Path, words: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(net: object) -> Any:
        def call(idx: Tensor) -> Tensor:
            raise OSError(words)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(ChargptError) as error:
        start(params_with(tmp_path, compile=True))
    assert str(error.value) == f"compile: true does not work here ({reason}); use -S compile=false"


def test_bfloat16_learns_alike(tmp_path: Path) -> None:
    low, full = (
        run(params_with(tmp_path, max_iters=30, eval_interval=30, dtype=dtype))[1] for dtype in ("bfloat16", "float32")
    )
    assert low[-1].val_loss != full[-1].val_loss
    assert low[-1].val_loss == pytest.approx(full[-1].val_loss, abs=0.1)
    assert full[-1].val_loss < full[0].val_loss - 0.1


@pytest.mark.system
@pytest.mark.filterwarnings("ignore")
def test_compile_without_a_compiler_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "c"))
    without = config.patch({"cpp.cxx": ("no-such-compiler",)})
    with without, pytest.raises(ChargptError, match=r"^compile: true does not work here \(.+\); use -S compile=false$"):
        start(params_with(tmp_path, compile=True))


def test_an_untrained_model_is_no_result(tmp_path: Path) -> None:
    """Neither after a divergence nor of a text whose end differs."""
    with pytest.raises(ChargptError, match=r"no model was written, .*: training diverged: .* lower the learning rate"):
        start(params_with(tmp_path, lr=10.0, grad_clip=0.0, warmup_iters=0)).train()
    params = params_with(tmp_path, max_iters=50, eval_interval=50)
    other = Trainer(new_model(params, 11), TRAIN % 3, TRAIN % 3 + 5, params)
    with pytest.raises(ChargptError, match=r"no model was written, .* 100% of its characters do not occur before"):
        other.train()
