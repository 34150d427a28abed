"""Interruptible training: state on disk, one trainer at a time, signals, and the death of whoever started it.

DVC deletes a stage's outputs before it runs, so the state lies beside them, under `.dvc/tmp/chargpt/<fingerprint>`.
The fingerprint covers everything that determines the result: a changed parameter, input or code file is another
directory, and starts afresh.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
import zc.lockfile
from torch import Tensor

from chargpt.checkpoint import tensor_hash
from chargpt.errors import ChargptError
from chargpt.files import open_tensors, write_tensors

SAVE_EVERY_S = 15.0
LOCK_WAIT_S = 60.0  # an orphaned predecessor needs a step or an evaluation to notice and save
ABANDONED_AFTER_S = 14 * 86400.0  # a state that nobody came back to


def read_inputs(params: Mapping[str, Any], files: list[Path]) -> dict[str, str]:
    """What determines the result, by name: each parameter's value and each file's sha256.

    Raises ChargptError if a file is not there.
    """
    inputs = {f"parameter {key}": json.dumps(value) for key, value in sorted(params.items())}
    for path in files:
        if not path.is_file():
            raise ChargptError(f"{path}: no such file; run `dvc repro` to make it")
        with path.open("rb") as file:
            inputs[path.as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return inputs


def code_files() -> list[Path]:
    """The project's own modules that are loaded, relative to the working directory."""
    files = [Path(getattr(module, "__file__", None) or os.devnull) for module in list(sys.modules.values())]
    folders = [Path.cwd() / name for name in ("chargpt", "stages")]
    return sorted({file.relative_to(Path.cwd()) for file in files if file.parent in folders})


def check_unchanged(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Raise ChargptError naming what was edited while training ran.

    DVC records parameters and files as they are when a stage ends, so its lock would describe another model
    (treeverse/dvc#11058).
    """
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        raise ChargptError(
            f"changed while training ran: {', '.join(changed)}; dvc.lock would describe a model that was not"
            " trained. Undo the change to keep this run's state, or run again to train with it"
        )


def share_threads() -> None:
    """Leave the other trainings on this machine, or those that DVC's queue is about to start, their part of the cores.

    Threads that take turns on a core wait for one another; OMP_NUM_THREADS overrides this.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    runs = max(sum(word in command for command in commands) for word in ("stages.train", "queue-worker"))
    threads = torch.get_num_threads()
    share = max(1, threads // max(1, runs))
    if share < threads:
        print(f"train: {runs} runs share this machine: computing with {share} of {threads} threads", file=sys.stderr)
        torch.set_num_threads(share)


def seconds_between_saves() -> float:
    """CHARGPT_SAVE_EVERY_S, 15 if not set. Raises ChargptError if it is not a number, at least 0."""
    value = os.environ.get("CHARGPT_SAVE_EVERY_S") or SAVE_EVERY_S
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise ChargptError(f"CHARGPT_SAVE_EVERY_S is {value!r}; it must be a number of seconds, at least 0")
    return seconds


class State:
    """The saved state of one training run: tensors and facts, whole or not there, verified when read."""

    def __init__(self, inputs: Mapping[str, str]) -> None:
        root = Path(os.environ.get("DVC_ROOT", ".")) / ".dvc" / "tmp" / "chargpt"
        fingerprint = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = root / fingerprint
        self.path = self.folder / "state.safetensors"
        self.save_every_s = seconds_between_saves()
        self._next_save = time.monotonic() + self.save_every_s

    @contextlib.contextmanager
    def locked(self) -> Iterator[State]:
        """Hold the run for this process alone; an orphaned predecessor gets a minute to save and end."""
        path = str(self.folder / "lock")
        deadline, told = time.monotonic() + LOCK_WAIT_S, False
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)  # a finished predecessor removes it
            try:
                lock = zc.lockfile.LockFile(path, content_template="{pid}")
                break
            except zc.lockfile.LockError:
                if time.monotonic() > deadline:
                    raise ChargptError(
                        f"{path}: another process trains with the same parameters and data; wait for it or stop it"
                    ) from None
                if not told:
                    print("train: waiting for another process with the same run to end", file=sys.stderr, flush=True)
                    told = True
                time.sleep(0.2)
        try:
            for half_written in self.folder.glob(".*.tmp"):  # by a process that was killed while it saved
                half_written.unlink()
            for other in self.folder.parent.iterdir():
                with contextlib.suppress(OSError):  # another run may just have removed its own
                    if other != self.folder and other.lstat().st_mtime < time.time() - ABANDONED_AFTER_S:
                        shutil.rmtree(other, ignore_errors=True)
            yield self
        finally:
            lock.close()

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() >= self._next_save

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bool:
        """Write the state; whether it could. A full disk costs this save, not the run nor the state before it."""
        held = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        about = {"facts": facts, "run": self.folder.name}
        about["sha256"] = tensor_hash(held, about)
        try:
            write_tensors(self.path, held, {"chargpt_state": json.dumps(about, sort_keys=True)})
            saved = True
        except OSError as error:
            print(f"train: state not saved ({error.strerror}); the one before it is kept", file=sys.stderr)
            saved = False
        self._next_save = time.monotonic() + self.save_every_s  # from here: a slow disk must not make it due at once
        return saved

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The saved tensors and facts, or None. A damaged file is reported and ignored."""
        if os.environ.get("CHARGPT_FRESH", "0") not in ("", "0"):
            self.path.unlink(missing_ok=True)
        if not self.path.exists():
            return None
        try:
            with open_tensors(self.path) as file:
                about = json.loads(file.metadata()["chargpt_state"])
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            claimed = about.pop("sha256")
            if tensor_hash(tensors, about) != claimed or about["run"] != self.folder.name:
                raise ValueError("damaged, or another run's")
            return tensors, about["facts"]
        except (ValueError, KeyError, TypeError):  # ChargptError is a ValueError
            print(f"train: {self.path} is damaged; ignored, training starts again", file=sys.stderr)
            return None

    def clear(self) -> None:
        """Remove the state: the run is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)
