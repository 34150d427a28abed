from __future__ import annotations

import math
import os
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chargpt.app.params_file import load_params
from chargpt.app.progress import Progress
from chargpt.app.signals import Stops
from chargpt.errors import ChargptError
from chargpt.evaluation import evaluate
from chargpt.model import GPTConfig
from chargpt.params import Params
from chargpt.training.curve import Curve, Row
from chargpt.training.loop import train
from chargpt.training.monitor import Stopped
from chargpt.training.schedule import rate_factor
from chargpt.training.start import continued_model, new_model
from chargpt.training.state import State
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
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: steps.append(1))
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
        tmp_path, lr=1.0, optimizer="adamw", warmup_iters=0, final_lr_fraction=1.0, max_iters=20, eval_interval=1
    )
    model, rows = run(params)
    losses = [row.val_loss for row in rows]
    assert losses[-1] > min(losses)
    assert evaluate(model, VAL) == min(losses)


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


def test_text_shorter_than_block_size(tmp_path: Path) -> None:
    params = params_with(tmp_path, block_size=300)
    with pytest.raises(ChargptError, match=r"300 characters to train on; block_size=300 needs at least 301.*-S block"):
        run(params)


def test_rate_factor(tmp_path: Path) -> None:
    params = params_with(tmp_path, warmup_iters=4, max_iters=104, final_lr_fraction=0.1)
    factors = [rate_factor(step, params) for step in range(105)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[54] == pytest.approx(0.55)
    assert factors[104] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(factors[4:]))


def test_migrated_model_of_another_shape(toy_params: Params) -> None:
    migrated = random_model(GPTConfig(11, 16, 3, 2, 8, activation="relu", attention_scale="embedding"))
    with pytest.raises(ChargptError) as error:
        continued_model(migrated, toy_params)
    for words in ("n_layer is 1, the migrated model has 3", "block_size is 8, the migrated model has 16"):
        assert words in str(error.value)
    assert "use -S n_layer=3 -S block_size=16" in str(error.value)


def test_migrated_model_starts_where_it_was(toy_params: Params) -> None:
    migrated = random_model(GPTConfig(11, 8, 1, 2, 8, activation="relu", attention_scale="embedding"))
    rows: list[Row] = []
    model = train(continued_model(migrated, toy_params), TRAIN, VAL, toy_params, rows.append)
    assert rows[0].val_loss == evaluate(migrated, VAL)
    assert (model.config.activation, model.config.attention_scale) == ("relu", "embedding")


def test_row_prints_as_tsv() -> None:
    assert str(Row(5, 1.5, 2.25, 1e-3)) == "5\t1.500000\t2.250000\t0.001\n"
