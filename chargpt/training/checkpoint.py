"""Checkpoints of unfinished runs: find, lock, load, save, prune and remove them.

DVC deletes the outputs of a stage before it runs, so a checkpoint is not an output. It lies in a directory named by a
fingerprint of everything that determines the result: a changed parameter, input or code file starts afresh.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from chargpt.errors import ChargptError
from chargpt.tensors import open_tensors, tensor_hash, write_tensors
from chargpt.training.events import Log, Report, ignore

LOCK_WAIT_S = 60.0  # a trainer whose DVC died needs a step to notice, and then saves
ABANDONED_AFTER_S = 14 * 86400.0
SAVE_EVERY_S = 15.0


class CheckpointStore:
    """The checkpoint of one run. It is complete or absent, and is verified when it is read.

    root: directory of the checkpoints of all runs. inputs: everything that determines the result, by name; a run with
    other inputs has another checkpoint. save_every_s: seconds between saves. fresh: ignore an existing checkpoint.
    """

    def __init__(
        self,
        root: Path,
        inputs: Mapping[str, str],
        *,
        save_every_s: float = SAVE_EVERY_S,
        fresh: bool = False,
        report: Report = ignore,
    ) -> None:
        fingerprint = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = root / fingerprint
        self.path = self.folder / "checkpoint.safetensors"
        self.save_every_s, self.fresh, self.report = save_every_s, fresh, report
        self._next_save = time.monotonic() + save_every_s

    @contextmanager
    def locked(self) -> Iterator[CheckpointStore]:
        """Let this process alone train the run, and prune the checkpoints of other runs.

        A process of an earlier start may still train, because its DVC died: it gets LOCK_WAIT_S to save and end.
        Raises ChargptError if it still runs then, or if the file system has no locks.
        """
        lock = _lock(self.folder)
        if lock is None:
            self.report(Log("waiting for another process that is training the same run"))
        deadline = time.monotonic() + LOCK_WAIT_S
        while lock is None:
            if time.monotonic() > deadline:
                raise ChargptError(
                    f"{self.folder}: another process is training with the same parameters and data; wait for it or stop"
                    " it"
                )
            time.sleep(0.2)
            lock = _lock(self.folder)
        try:
            for half_written in self.folder.glob(".*.tmp"):
                half_written.unlink()
            self._prune()
            yield self
        finally:
            lock.release()

    def _prune(self) -> None:
        """Remove the checkpoints of other runs that nobody came back to."""
        for other in self.folder.parent.iterdir():
            with suppress(OSError, ChargptError):  # it may be removed just now, or belong to another user
                abandoned = other.lstat().st_mtime < time.time() - ABANDONED_AFTER_S
                if abandoned and other.is_dir() and other != self.folder and (lock := _lock(other)):
                    shutil.rmtree(other, ignore_errors=True)
                    lock.release()

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() >= self._next_save

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bool:
        """Write the checkpoint; return whether that worked.

        If the disk is full, the run goes on, and the checkpoint saved before remains.
        """
        arrays = {name: t.detach().cpu().numpy() for name, t in tensors.items()}
        about = {"facts": facts, "run": self.folder.name}
        about["sha256"] = _checksum(arrays, about)
        try:
            write_tensors(self.path, arrays, {"checkpoint": json.dumps(about, sort_keys=True)})
            saved = True
        except OSError as error:
            self.report(Log(f"checkpoint not saved ({error.strerror}); the previous one is kept; free some disk space"))
            saved = False
        # counted from now: after a slow save, the next one must not be due at once
        self._next_save = time.monotonic() + self.save_every_s
        return saved

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The saved tensors and facts, or None if there are none. A damaged checkpoint is reported and ignored."""
        if self.fresh:
            self.path.unlink(missing_ok=True)
        if not self.path.exists():
            return None
        try:
            file = open_tensors(self.path)
            about = json.loads(file.metadata["checkpoint"])
            arrays = {name: array.copy() for name, array in file.arrays().items()}
            claimed = about.pop("sha256")
            if _checksum(arrays, about) != claimed or about["run"] != self.folder.name:
                raise ValueError
            return {name: torch.from_numpy(array) for name, array in arrays.items()}, about["facts"]
        except (ValueError, KeyError, TypeError):  # ChargptError is a ValueError
            self.report(Log(f"{self.path} is damaged; ignoring it and training from step 0"))
            return None

    def remove(self) -> None:
        """Remove the checkpoint, its lock included, after the run is complete. Call it while the lock is held."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _lock(folder: Path) -> FileLock | None:
    """The lock of a run's directory, held; None if another process holds it.

    Raises ChargptError if the file system has no locks.
    """
    lock = FileLock(folder / "lock", blocking=False, fallback_to_soft=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        return lock
    except (Timeout, FileNotFoundError):  # FileNotFoundError: a process that finished removed the directory just now
        return None
    except (OSError, NotImplementedError) as error:
        raise ChargptError(
            f"{folder}: cannot be locked ({error}). Where the file system has no locks, as with Lustre and some NFS"
            " mounts, clone the project to a local disk"
        ) from None


def _checksum(arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> str:
    """A sha256 over the tensors, their names, shapes and dtypes, and the facts."""
    header = {name: [array.dtype.str, *array.shape] for name, array in arrays.items()}
    return tensor_hash(arrays, {**about, "header": header})
