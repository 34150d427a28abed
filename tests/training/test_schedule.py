from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from chargpt.model.config import GPTConfig
from chargpt.params import Params
from chargpt.project.params_file import load_params
from chargpt.training.schedule import Schedule, resolve
from tests.pipeline import ROOT

SHAKESPEARE = 1_003_854  # characters to train on
SCRATCH = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 128, "dropout": 0.0, "batch_size": 24}
SCRATCH |= {"max_iters": 1500, "eval_interval": 300, "lr": 0.018, "warmup_iters": 40, "weight_decay": 0.25}
BASE = GPTConfig(200, 64, 3, 2, 64)


def test_the_rate_goes_up_and_down_in_lines() -> None:
    schedule = Schedule(104, 1, 4, 0.1)
    factors = [schedule.rate_factor(step) for step in range(105)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[54] == pytest.approx(0.55)
    assert factors[104] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(factors[4:]))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(2, 1, 0, 0.5), [1, 0.75, 0.5]),
        (Schedule(2, 1, 0, 1), [1, 1, 1]),
        (Schedule(3, 1, 1, 0), [0.5, 1, 0.5, 0]),
        (Schedule(3, 1, 3, 0), [0.25, 0.5, 0.75, 1]),  # all of it warmup
    ],
)
def test_short_schedules(schedule: Schedule, expected: list[float]) -> None:
    assert [schedule.rate_factor(step) for step in range(len(expected))] == pytest.approx(expected)


def auto(**changes: Any) -> Params:
    return load_params(ROOT / "params.yaml").model_copy(update=changes)


def test_the_default_recipe_of_tiny_shakespeare() -> None:
    chosen = resolve(auto(), SHAKESPEARE, 2.2, BASE)
    assert dict(chosen).items() >= (SCRATCH | {"init": "scratch"}).items()


@pytest.mark.parametrize("init", ["auto", "scratch", "base", "migrated", "models/x"])
@pytest.mark.parametrize("characters", [2, 100, 5_000, 20_000, 200_000, 2_000_000, 100_000_000])
def test_every_text_gets_a_recipe_that_fits(characters: int, init: str) -> None:
    chosen = resolve(auto(init=init), characters, 2.5, None if init == "scratch" else BASE)
    assert {key for key, value in chosen if value == "auto"} == {"device", "dtype", "dialect"}
    assert chosen.block_size < characters and chosen.warmup_iters <= chosen.max_iters
    assert 1 <= chosen.eval_interval <= chosen.max_iters
    if chosen.init != "scratch":
        assert (chosen.n_layer, chosen.n_head, chosen.n_embd) == (3, 2, 64)


def test_given_values_win_and_the_others_follow_them() -> None:
    chosen = resolve(auto(max_iters=20, batch_size=3, n_embd=96), 20_000, 2.2, BASE)
    assert (chosen.max_iters, chosen.batch_size, chosen.n_embd) == (20, 3, 96)
    assert chosen.init == "scratch", "the base is not 96 wide"
    assert chosen.eval_interval == 4 and chosen.warmup_iters <= 20
    assert resolve(chosen, 5, 0.0) == chosen


def test_the_base_is_for_short_texts() -> None:
    assert [resolve(auto(), n, 9.0, BASE).init for n in (20_000, 999_999, 1_000_000)] == ["base", "base", "scratch"]


def test_a_foreign_or_a_long_text_gets_a_higher_rate() -> None:
    texts = ((18_000, 2.0), (18_000, 2.3), (18_000, 3.15), (18_000, 4.0), (18_000, 5.0), (900_000, 2.0))
    rates = [resolve(auto(init="base"), *text, BASE).lr for text in texts]
    assert rates == [0.001, 0.001, 0.0017, 0.003, 0.003, 0.0018]
