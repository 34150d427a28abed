"""Read environment variables and running processes.

They say where states and the cached text lie, how often to save, and how many trainings share the processor.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import psutil

from chargpt.errors import ChargptError
from chargpt.training.monitor import SAVE_EVERY_S


def state_root() -> Path:
    """Directory for the states of unfinished runs. It is in the main checkout, also if DVC runs in a copy of it."""
    return Path(os.environ.get("DVC_ROOT", ".")) / ".dvc" / "tmp" / "chargpt"


def step_signal() -> Path:
    """The file whose change tells DVC's extension for VS Code to read the curve again, also of a run in a copy.

    Source: iterative/vscode-dvc#4528.
    """
    return Path(os.environ.get("DVC_ROOT", ".")) / ".dvc" / "tmp" / "exps" / "run" / "DVCLIVE_STEP_COMPLETED"


def seconds_between_saves() -> float:
    """CHARGPT_SAVE_EVERY_S, or 15 if it is not set. Raises ChargptError if it is not a number of at least 0."""
    value = os.environ.get("CHARGPT_SAVE_EVERY_S") or SAVE_EVERY_S
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise ChargptError(f"CHARGPT_SAVE_EVERY_S is {value!r}; it must be a number of seconds, at least 0")
    return seconds


def fresh_start() -> bool:
    """Whether to ignore a saved state: CHARGPT_FRESH is set, and not to 0."""
    return os.environ.get("CHARGPT_FRESH", "0") not in ("", "0")


def cache_folder() -> Path:
    """Directory that keeps the verified text: $CHARGPT_CACHE_DIR, or `chargpt` in the user's cache directory."""
    import platformdirs

    return Path(os.environ.get("CHARGPT_CACHE_DIR") or platformdirs.user_cache_dir("chargpt"))


def limit_threads() -> None:
    """Let Numba, if it is not loaded yet, take as many threads as OMP_NUM_THREADS says, which torch reads itself."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isascii() and threads.isdigit() and int(threads):
        os.environ.setdefault("NUMBA_NUM_THREADS", threads)


def runs_here() -> int:
    """Number of trainings that share the cores of this machine, this one included.

    If DVC has more queue workers than there are trainings, their number counts: each will start one.
    If OMP_NUM_THREADS is set, the user has chosen the number of threads: the result is then 1.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return 1
    return runs_among([process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])])


def runs_among(commands: Sequence[Sequence[str]]) -> int:
    """Number of trainings among the command lines of all processes; of queue workers if these are more; at least 1."""
    # a `nice` or `timeout` around a training has its words too, but is no Python
    pythons = [command for command in commands if command and "python" in Path(command[0]).name]
    training = sum(("stages", "train") in pairwise(command) for command in pythons)
    return max(1, training, sum("queue-worker" in command for command in commands))
