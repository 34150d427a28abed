from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from chargpt.app.params_file import load_params
from chargpt.training.schedule import rate_factor
from tests.conftest import write_params


def test_the_rate_goes_up_and_down_in_lines(tmp_path: Path) -> None:
    params = load_params(
        write_params(tmp_path / "params.yaml", warmup_iters=4, max_iters=104, final_lr_fraction=0.1, eval_interval=1)
    )
    factors = [rate_factor(step, params) for step in range(105)]
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
    params = load_params(write_params(tmp_path / "params.yaml", **changes))
    assert [rate_factor(step, params) for step in range(len(expected))] == pytest.approx(expected)
