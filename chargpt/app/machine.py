"""What the environment says: where states and the cached text lie, how often to save, who shares the processor."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import psutil

from chargpt.errors import ChargptError

SAVE_EVERY_S = 15.0


def state_root() -> Path:
    """Where the states of unfinished runs lie: in the main checkout, also for DVC's copies of it."""
    return Path(os.environ.get("DVC_ROOT", ".")) / ".dvc" / "tmp" / "chargpt"


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


def fresh_start() -> bool:
    """Whether CHARGPT_FRESH asks to ignore a saved state."""
    return os.environ.get("CHARGPT_FRESH", "0") not in ("", "0")


def cache_folder() -> Path:
    """Where the verified text is kept: $CHARGPT_CACHE_DIR, or `chargpt` in the user's cache directory."""
    import platformdirs

    return Path(os.environ.get("CHARGPT_CACHE_DIR") or platformdirs.user_cache_dir("chargpt"))


def runs_here() -> int:
    """Trainings on this machine that share its cores with this one, itself included.

    Those that DVC's queue is about to start count. OMP_NUM_THREADS overrides the sharing: then 1.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return 1
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    training = sum(("stages", "train") in pairwise(command) for command in commands)
    return max(1, training, sum("queue-worker" in command for command in commands))
