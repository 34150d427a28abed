"""Reasons to stop training early: signals, and the death of the DVC that started it. Does not load torch."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

from chargpt.runtime.exits import ENDING
from chargpt.training.events import Stopped

CHECK_PARENTS_EVERY_S = 1.0
IMPATIENT_S = 1.0  # a terminal and torchrun may both pass on one Ctrl-C; a second one comes later than this
DVC_PID = "CHARGPT_DVC_PID"  # environment variable with the process id of the DVC that started the stage


def remember_dvc() -> None:
    """Record which DVC started this process, for `StopRequests` in this process and in those that it starts."""
    for process in psutil.Process().parents() if "DVC_ROOT" in os.environ else ():  # the nearest one first
        with suppress(psutil.Error):
            if any("dvc" in Path(word).name for word in process.cmdline()[:3]):
                os.environ.setdefault(DVC_PID, str(process.pid))


class StopRequests:
    """Notices SIGINT, the signals of ENDING, and the death of the DVC that `remember_dvc` recorded.

    Call it to ask for the reason to stop. rank 0 says at once that a signal arrived. Until the training has noticed,
    which may take a long step, a second Ctrl-C ends the process; after that, signals do not disturb the saving.
    """

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank
        self.stopped: Stopped | None = None
        self._noticed, self._first = False, 0.0
        self._next_check = 0.0
        self._dvc = int(os.environ.get(DVC_PID, 0))

    def install(self) -> None:
        """Handle the signals from now on. One that is ignored, as SIGHUP under `nohup`, stays so."""
        for number in (signal.SIGINT, *ENDING):
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.stopped is None:
            self.stopped, self._first = Stopped(signal.Signals(number).name, 128 + number), time.monotonic()
            if self.rank == 0:
                with suppress(OSError):  # not by print, which this signal may have interrupted
                    os.write(2, f"train: {self.stopped.reason} received; saving and stopping\n".encode())
        elif number == signal.SIGINT and not self._noticed and time.monotonic() > self._first + IMPATIENT_S:
            raise KeyboardInterrupt

    def __call__(self) -> Stopped | None:
        """Why to save and stop now, or None. Fast enough to be called before every step."""
        if self._dvc and self.stopped is None and time.monotonic() >= self._next_check:
            self._next_check = time.monotonic() + CHECK_PARENTS_EVERY_S
            if self._dvc not in [parent.pid for parent in psutil.Process().parents()]:
                self.stopped = Stopped("the DVC process that started this training has ended")
        self._noticed = self.stopped is not None
        return self.stopped
