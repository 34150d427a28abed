from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch

from chargpt.evaluation.curve import Row
from chargpt.runtime.environment import step_signal
from chargpt.runtime.progress import Progress
from chargpt.training.events import Log, Started, Stepped

LOSS = torch.tensor(1.0)


def test_a_line_is_shown_regularly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where no terminal shows a bar."""
    with Progress() as progress:
        progress(Started(3, 90, 32, ()))
        progress(Stepped(4, LOSS))
        assert capsys.readouterr().err == ""
        monkeypatch.setattr("chargpt.runtime.progress.SHOW_EVERY_S", 0.0)
        progress(Stepped(5, LOSS))
    assert re.fullmatch(r"train: step 5/90, \d+ char/s, \d+ s left\n", capsys.readouterr().err)


def test_evaluations_and_messages_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        progress(Started(0, 10, 32, ()))
        progress(Row(0, 2.5, 2.25, 0.001))
        progress(Log("done"))
    assert capsys.readouterr().err == ("train: step 0/10: train 2.5000 val 2.2500 lr 1.00e-03\ntrain: done\n")


def test_an_editor_is_notified_of_each_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the main checkout, also from a copy. A file that cannot be written is no reason to stop."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    file = step_signal()
    assert file == tmp_path / ".dvc/tmp/exps/run/DVCLIVE_STEP_COMPLETED"
    with Progress(file) as progress:
        progress(Started(0, 10, 32, ()))
        for step in (0, 5):
            progress(Row(step, 1.0, 1.0, 0.1))
            assert json.loads(file.read_text()) == {"pid": os.getpid(), "step": step}
    assert not file.exists()
    (tmp_path / "file").touch()
    with Progress(tmp_path / "file/signal") as progress:
        progress(Row(0, 1.0, 1.0, 0.1))
