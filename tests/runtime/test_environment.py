from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from chargpt.errors import ChargptError
from chargpt.runtime.environment import checkpoints, limit_threads, saving


@pytest.mark.parametrize(
    ("every", "fresh", "expected"),
    [
        (None, None, {"fresh": False}),
        ("", "0", {"fresh": False}),
        ("0", "", {"fresh": False, "save_every_s": 0.0}),
        ("2.5", "1", {"fresh": True, "save_every_s": 2.5}),
    ],
)
def test_how_checkpoints_are_saved(
    monkeypatch: pytest.MonkeyPatch, every: str | None, fresh: str | None, expected: dict[str, Any]
) -> None:
    for name, value in (("CHARGPT_SAVE_EVERY_S", every), ("CHARGPT_FRESH", fresh)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert saving() == expected


@pytest.mark.parametrize("value", ["often", "-1", "nan", "1,5"])
def test_seconds_between_saves_must_be_a_number(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CHARGPT_SAVE_EVERY_S", value)
    with pytest.raises(ChargptError) as error:
        saving()
    assert str(error.value) == f"CHARGPT_SAVE_EVERY_S is '{value}'; it must be a number of seconds, at least 0"


def test_checkpoints_of_a_copy_lie_in_the_main_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", "/somewhere")
    assert checkpoints() == Path("/somewhere/.dvc/tmp/chargpt")
    monkeypatch.delenv("DVC_ROOT")
    assert checkpoints() == Path(".dvc/tmp/chargpt")


@pytest.mark.parametrize(
    ("files", "omp", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, None, "1"),
        ({"cpu.max": "250000 100000\n"}, None, "2"),
        ({"cpu.max": "20000 100000\n"}, None, "1"),
        ({"cpu.max": "max 100000\n"}, None, None),
        ({"cpu.max": "900000 100000\n"}, None, None),  # more than there are
        ({}, None, None),
        ({"cpu.max": "150000 100000\n"}, "3", "3"),  # the user's choice
        ({}, "many", "many"),  # torch ignores it, too
    ],
)
def test_threads_fit_the_cpu_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], omp: str | None, expected: str | None
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "environ", {"OMP_NUM_THREADS": omp} if omp else {})
    limit_threads(tmp_path)
    assert os.environ.get("OMP_NUM_THREADS") == expected
    assert os.environ.get("NUMBA_NUM_THREADS") == (None if expected == "many" else expected)
