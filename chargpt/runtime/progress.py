"""Show the progress of a training: one line that changes in a terminal, a line per evaluation in a file."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from chargpt.evaluation.curve import Row
from chargpt.files import write_json
from chargpt.training.events import Event, Log, Started, Stepped

SHOW_EVERY_S = 15.0  # longest silence in a file, while steps are made


class Progress:
    """Shows losses, learning rate, characters per second and time left on stderr.

    signal: a file to write after each evaluation, for programs that wait for new figures; removed at the end.
    """

    def __init__(self, signal: Path | None = None) -> None:
        self.signal = signal
        self.live = sys.stderr.isatty()
        self.bar: tqdm[None] | None = None
        self.max_iters = self.batch = 0
        self.steps, self.began = 0, time.monotonic()  # steps made by this process, and their start
        self.row, self.shown = "", time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.signal:
            with suppress(OSError):
                self.signal.unlink(missing_ok=True)
        if self.bar is not None:
            self.bar.close()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        match event:
            case Log(text):
                self._write(text)
            case Started():
                self._start(event)
            case Stepped():
                self._count(event)
            case Row():
                self._evaluated(event)

    def _write(self, text: str) -> None:
        self.shown = time.monotonic()
        with suppress(OSError):  # the terminal or the pipe may be closed
            tqdm.write(f"train: {text}", file=sys.stderr)

    def _start(self, event: Started) -> None:
        self.max_iters, self.batch = event.max_iters, event.batch
        total, done = event.max_iters * event.batch, event.step * event.batch
        self.bar = tqdm(total=total, initial=done, unit="char", unit_scale=True, disable=not self.live, leave=False)

    def _count(self, event: Stepped) -> None:
        assert self.bar is not None
        self.bar.update(self.batch)
        self.steps += 1
        if self.steps == 1:  # the first one takes longer, and an evaluation came before it
            self.began = time.monotonic()
        if self.live and self.steps % 20 == 1:  # not every time: reading a loss makes a GPU wait
            self.bar.set_description_str(f"train {event.loss.item():.3f} {self.row}", refresh=False)
        elif not self.live and time.monotonic() >= self.shown + SHOW_EVERY_S:
            self._write(f"step {event.step}/{self.max_iters}{self._pace(event.step)}")

    def _evaluated(self, row: Row) -> None:
        self.row = f"val {row.val_loss:.4f} lr {row.lr:.2e}"
        if self.signal:
            with suppress(OSError):  # a full disk is no reason to lose the training
                self.signal.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.signal, {"pid": os.getpid(), "step": row.step})
        if not self.live:
            losses = f"train {row.train_loss:.4f} {self.row}"
            self._write(f"step {row.step}/{self.max_iters}: {losses}{self._pace(row.step)}")

    def _pace(self, step: int) -> str:
        """Characters per second and time left; empty before the second step."""
        if self.steps < 2:
            return ""
        seconds = (time.monotonic() - self.began) / (self.steps - 1)
        return f", {self.batch / seconds:.0f} char/s, {seconds * (self.max_iters - step):.0f} s left"
