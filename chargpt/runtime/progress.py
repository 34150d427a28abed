"""Show the progress of a training run: one line that changes in a terminal, a line per evaluation in a file."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from chargpt.files import write_json
from chargpt.runtime.signals import Stops
from chargpt.training.monitor import Monitor

if TYPE_CHECKING:
    from torch import Tensor

    from chargpt.evaluation.curve import Row
    from chargpt.params import Params


TELL_EVERY_S = 15.0  # longest silence in a file


class Progress(Monitor):
    """Shows losses, learning rate, characters per second and time left on stderr; stops the run if `stops` says so.

    signal: a file to write after each evaluation, for programs that wait for new figures; removed at the end.
    """

    def __init__(self, params: Params, stops: Stops, signal: Path | None = None) -> None:
        self.stops = stops
        self.signal = signal
        self.max_iters = 0
        self.batch = params.batch_size * params.block_size
        self.live = sys.stderr.isatty()
        self.bar: tqdm[None] | None = None
        self.step = 0
        self.updates, self.began = 0, time.monotonic()  # updates by this process, and their start
        self.row = ""
        self.told, self.ended = time.monotonic(), threading.Event()

    def __enter__(self) -> Progress:
        self.stops.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.stops.__exit__(*error)
        self.ended.set()
        if self.signal:
            with suppress(OSError):
                self.signal.unlink(missing_ok=True)
        if self.bar is not None:
            self.bar.close()

    def stop_reason(self) -> str:
        return self.stops.stop_reason()

    def say(self, text: str) -> None:
        self.told = time.monotonic()
        with suppress(OSError):  # the terminal or the pipe may be closed
            tqdm.write(f"train: {text}", file=sys.stderr)

    def started(self, step: int, max_iters: int) -> None:
        self.step, self.max_iters = step, max_iters
        total, done = self.max_iters * self.batch, step * self.batch
        self.bar = tqdm(total=total, initial=done, unit="char", unit_scale=True, disable=not self.live, leave=False)
        if not self.live:
            threading.Thread(target=self._tell_regularly, daemon=True).start()

    def _tell_regularly(self) -> None:
        """Show the step if nothing else was shown for a while, as during a long evaluation."""
        while not self.ended.wait(max(0.1, self.told + TELL_EVERY_S - time.monotonic())):
            if time.monotonic() >= self.told + TELL_EVERY_S:
                self.say(f"step {self.step}/{self.max_iters}{self._pace(self.step)}")

    def stepped(self, losses: Sequence[Tensor]) -> None:
        assert self.bar is not None
        self.bar.update(self.batch)
        self.step += 1
        self.updates += 1
        if self.updates == 1:  # the first one takes longer, and an evaluation came before it
            self.began = time.monotonic()
        if self.live and len(losses) % 20 == 1:  # not every time: reading a loss makes a GPU wait
            self.bar.set_description_str(f"train {losses[-1].item():.3f} {self.row}", refresh=False)

    def evaluated(self, row: Row) -> None:
        self.row = f"val {row.val_loss:.4f} lr {row.lr:.2e}"
        if self.signal:
            with suppress(OSError):  # a full disk is no reason to lose the training
                self.signal.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.signal, {"pid": os.getpid(), "step": row.step})
        if not self.live:
            self.say(f"step {row.step}/{self.max_iters}: train {row.train_loss:.4f} {self.row}{self._pace(row.step)}")

    def _pace(self, step: int) -> str:
        """Characters per second and time left; empty before the second update."""
        if self.updates < 2:
            return ""
        seconds = (time.monotonic() - self.began) / (self.updates - 1)
        return f", {self.batch / seconds:.0f} char/s, {seconds * (self.max_iters - step):.0f} s left"
