from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from chargpt.project.params_file import load_params
from chargpt.training.schedule import make_schedule
from tests.conftest import write_params

LONG = 1_000_000  # characters


def test_the_rate_goes_up_and_down_in_lines(tmp_path: Path) -> None:
    changes = {"warmup_iters": 4, "max_iters": 104, "final_lr_fraction": 0.1, "eval_interval": 1}
    schedule = make_schedule(load_params(write_params(tmp_path / "params.yaml", **changes)), LONG)
    factors = [schedule.rate_factor(step) for step in range(105)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[54] == pytest.approx(0.55)
    assert factors[104] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(factors[4:]))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"warmup_iters": 0, "max_iters": 2, "final_lr_fraction": 0.5}, [1, 0.75, 0.5]),
        ({"warmup_iters": 0, "max_iters": 2, "final_lr_fraction": 1}, [1, 1, 1]),
        ({"warmup_iters": 1, "max_iters": 3, "final_lr_fraction": 0}, [0.5, 1, 0.5, 0]),
        ({"warmup_iters": 3, "max_iters": 3, "final_lr_fraction": 0}, [0.25, 0.5, 0.75, 1]),  # all of it warmup
    ],
)
def test_short_schedules(tmp_path: Path, changes: dict[str, float], expected: list[float]) -> None:
    schedule = make_schedule(load_params(write_params(tmp_path / "params.yaml", **changes)), LONG)
    assert [schedule.rate_factor(step) for step in range(len(expected))] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("characters", "updates"),
    [
        (1_000_000, 1000),
        (33 * 8 + 1, 160),  # 32 windows of 8, each read 20 times, 4 in an update
        (33 * 8 + 8, 160),
        (34 * 8 + 1, 165),
        (9, 5),
        (200 * 8 + 1, 995),
        (202 * 8 + 1, 1000),
    ],
)
def test_a_short_text_shortens_all_in_proportion(tmp_path: Path, characters: int, updates: int) -> None:
    changes = {"warmup_iters": 100, "max_iters": 1000, "eval_interval": 200, "max_epochs": 20}
    schedule = make_schedule(load_params(write_params(tmp_path / "params.yaml", **changes)), characters)
    assert schedule.max_iters == updates
    assert schedule.warmup_iters == updates // 10
    assert schedule.eval_interval == -(-updates // 5)
    evaluated = [step for step in range(updates + 1) if schedule.evaluates(step)]
    assert evaluated == [i * schedule.eval_interval for i in range(len(evaluated) - 1)] + [updates]
    assert 4 <= len(evaluated) <= 6
