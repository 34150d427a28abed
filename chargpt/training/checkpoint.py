"""The saved state of an unfinished run, and a lock that lets only one process at a time use it.

DVC deletes the outputs of a stage before the stage runs, so the state is not an output. It lies in a directory named by
a fingerprint of everything that determines the result. A changed parameter, input or code file therefore gives another
directory, and training starts afresh.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import zc.lockfile
from torch import Tensor

from chargpt.errors import ChargptError, escape
from chargpt.tensors import open_tensors, tensor_hash, write_tensors
from chargpt.training.monitor import SAVE_EVERY_S

LOCK_WAIT_S = 60.0  # a trainer whose DVC died needs a step or an evaluation to notice, and then saves
ABANDONED_AFTER_S = 14 * 86400.0  # a state unused for two weeks is removed
MAX_STATES = 20  # of several interrupted runs, the states used last are kept


class State:
    """The saved state of one training run: tensors and facts. It is complete or absent, and is verified when read.

    root: directory for the states of all runs. inputs: everything that determines the result, by name; a run with other
    inputs has another state. save_every_s: seconds between saves. fresh: ignore a saved state. say: called with each
    line of text for the user.
    """

    def __init__(
        self,
        root: Path,
        inputs: Mapping[str, str],
        *,
        save_every_s: float = SAVE_EVERY_S,
        fresh: bool = False,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        fingerprint = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
        self.inputs = dict(inputs)
        self.folder = root / fingerprint
        self.path = self.folder / "state.safetensors"
        self.fresh, self.say = fresh, say
        self.save_every_s = save_every_s
        self._next_save = time.monotonic() + self.save_every_s

    @contextlib.contextmanager
    def locked(self) -> Iterator[State]:
        """Lock the run for this process alone.

        If a process of an earlier start still trains, because its DVC died, it gets LOCK_WAIT_S to save and end.
        Raises ChargptError if it still runs then.
        """
        path = str(self.folder / "lock")
        deadline, told = time.monotonic() + LOCK_WAIT_S, False
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)  # another process that finishes removes it
            try:
                lock = zc.lockfile.LockFile(path, content_template="{pid}")
                break
            except zc.lockfile.LockError:
                if time.monotonic() > deadline:
                    raise ChargptError(
                        f"{path}: another process trains with the same parameters and data; wait for it or stop it"
                    ) from None
                if not told:
                    self.say("waiting for another process with the same run to end")
                    told = True
                time.sleep(0.2)
        try:
            self._tidy_up()
            yield self
        finally:
            lock.close()

    def _tidy_up(self) -> None:
        """Remove half-written files of a killed process, and old states of other runs that do not train now."""
        for half_written in self.folder.glob(".*.tmp"):
            half_written.unlink()
        used: dict[Path, float] = {}
        for other in self.folder.parent.iterdir():
            with contextlib.suppress(OSError):  # the other run may remove its directory now
                if other != self.folder:
                    used[other] = other.lstat().st_mtime
        latest = sorted(used, key=lambda other: used[other], reverse=True)
        for place, other in enumerate(latest):
            if place >= MAX_STATES - 1 or used[other] < time.time() - ABANDONED_AFTER_S:
                _remove_unlocked(other)

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() >= self._next_save

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bool:
        """Write the state; return whether that worked.

        If the disk is full, `say` reports it, the run goes on, and the state saved before remains.
        """
        held = {name: t.detach().cpu().numpy() for name, t in tensors.items()}
        about = {"facts": facts, "run": self.folder.name, "inputs": self.inputs}
        about["sha256"] = tensor_hash(held, about)
        try:
            write_tensors(self.path, held, {"chargpt_state": json.dumps(about, sort_keys=True)})
            saved = True
        except OSError as error:
            self.say(f"state not saved ({error.strerror}); the previous state is kept; free some disk space")
            saved = False
        # counted from now: after a slow save, the next one must not be due at once
        self._next_save = time.monotonic() + self.save_every_s
        return saved

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The saved tensors and facts, or None if there are none. A damaged file is reported and ignored."""
        if self.fresh:
            self.path.unlink(missing_ok=True)
        if not self.path.exists():
            if not self.fresh:
                self._tell_of_other_code()
            return None
        try:
            file = open_tensors(self.path)
            about = json.loads(file.metadata["chargpt_state"])
            held = {name: array.copy() for name, array in file.arrays().items()}
            claimed = about.pop("sha256")
            if tensor_hash(held, about) != claimed or about["run"] != self.folder.name:
                raise ValueError("damaged, or another run's")
            return {name: torch.from_numpy(array) for name, array in held.items()}, about["facts"]
        except (ValueError, KeyError, TypeError):  # ChargptError is a ValueError
            self.say(f"{self.path} is damaged; ignored, training starts again")
            return None

    def _tell_of_other_code(self) -> None:
        """Say that a state of the same parameters and data is not used, because other code or torch saved it."""
        for path in self.folder.parent.glob("*/state.safetensors"):
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, OSError):
                about = json.loads(open_tensors(path).metadata["chargpt_state"])
                theirs, step = about.get("inputs"), int(about["facts"]["step"])
                if theirs is None:
                    self.say(
                        f"{path}: saved at step {step} by an earlier version of chargpt; not used, training starts"
                    )
                    continue
                other = {name for name in theirs.keys() | self.inputs if theirs.get(name) != self.inputs.get(name)}
                if all(name == "torch" or name.endswith(".py") for name in other):
                    names = ", ".join(escape(name, 60) for name in sorted(other)[:3])
                    self.say(
                        f"a state saved at step {step} is not used, because {names} changed; undo that to go on there"
                    )

    def clear(self) -> None:
        """Remove the state, after the run is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _remove_unlocked(folder: Path) -> None:
    """Remove the state of a run, unless a process trains it now."""
    try:
        zc.lockfile.LockFile(str(folder / "lock")).close()
    except zc.lockfile.LockError:
        return
    except OSError:  # no directory
        with contextlib.suppress(OSError):
            folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
