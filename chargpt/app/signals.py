"""Reasons to stop training early: signals, and the death of the DVC that started it. Does not load torch."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from types import FrameType

import psutil

CHECK_PARENTS_EVERY_S = 1.0


class Stops:
    """Notices SIGINT, SIGTERM and the death of the DVC that started this process.

    The constructor looks for this DVC, so it must be called while DVC still runs.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.status = 0
        self._next_check = 0.0
        self._dvc = _dvc_ancestor() if "DVC_ROOT" in os.environ else None

    def __enter__(self) -> Stops:
        self._previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
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
            if self._dvc not in psutil.Process().parents():
                self.reason, self.status = "DVC, which started this process, is gone", 1
        return self.reason


def _dvc_ancestor() -> psutil.Process | None:
    for process in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            if any("dvc" in Path(word).name for word in process.cmdline()[:3]):
                return process
    return None
