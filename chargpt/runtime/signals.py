"""Reasons to stop training early: signals, and the death of the DVC that started it. Does not load torch."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from types import FrameType

import psutil

from chargpt.runtime.exits import ENDING

CHECK_PARENTS_EVERY_S = 1.0
DVC_PID = "CHARGPT_DVC_PID"  # environment variable with the process id of the DVC that started the stage


def remember_dvc() -> None:
    """Record which DVC started this process, for `Stops` in this process and in those that it starts."""
    if "DVC_ROOT" in os.environ and DVC_PID not in os.environ and (dvc := _dvc_ancestor()):
        os.environ[DVC_PID] = str(dvc.pid)


class Stops:
    """Notices SIGINT, the signals of ENDING, and the death of the DVC that `remember_dvc` recorded."""

    def __init__(self) -> None:
        self.reason = ""
        self.status = 0
        self._next_check = 0.0
        self._dvc = int(os.environ.get(DVC_PID, 0))

    def __enter__(self) -> Stops:
        stopping = [s for s in (signal.SIGINT, *ENDING) if s == signal.SIGINT or signal.getsignal(s) != signal.SIG_IGN]
        self._previous = {s: signal.signal(s, self._on_signal) for s in stopping}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():  # after a stop, another signal must not interrupt the exit
            signal.signal(number, signal.SIG_IGN if self.status else handler)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.reason, self.status = signal.Signals(number).name, 128 + number

    def stop_reason(self) -> str:
        """The reason to save and stop now, or an empty string. Fast enough to be called before every update."""
        if self._dvc and not self.status and time.monotonic() >= self._next_check:
            self._next_check = time.monotonic() + CHECK_PARENTS_EVERY_S
            if self._dvc not in [parent.pid for parent in psutil.Process().parents()]:
                self.reason, self.status = "DVC, which started this process, is gone", 1
        return self.reason


def _dvc_ancestor() -> psutil.Process | None:
    for process in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            if any("dvc" in Path(word).name for word in process.cmdline()[:3]):
                return process
    return None
