"""What environment variables and the machine decide: where files lie, how often to save, how many threads compute."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from chargpt.errors import ChargptError


def checkpoints() -> Path:
    """Directory of the checkpoints of unfinished runs. It is in the main checkout, also if DVC runs in a copy of it."""
    return Path(os.environ.get("DVC_ROOT", ".")) / ".dvc" / "tmp" / "chargpt"


def step_signal() -> Path:
    """The file whose change tells DVC's extension for VS Code to read the curve again, also of a run in a copy.

    Source: iterative/vscode-dvc#4528.
    """
    return Path(os.environ.get("DVC_ROOT", ".")) / ".dvc" / "tmp" / "exps" / "run" / "DVCLIVE_STEP_COMPLETED"


def saving() -> dict[str, float | bool]:
    """Options of `CheckpointStore`: CHARGPT_SAVE_EVERY_S, seconds; CHARGPT_FRESH ignores an existing checkpoint.

    Raises ChargptError if CHARGPT_SAVE_EVERY_S is not a number of at least 0.
    """
    options: dict[str, float | bool] = {"fresh": os.environ.get("CHARGPT_FRESH", "0") not in ("", "0")}
    if value := os.environ.get("CHARGPT_SAVE_EVERY_S"):
        if not re.fullmatch(r"\d+(\.\d*)?", value):
            raise ChargptError(f"CHARGPT_SAVE_EVERY_S is {value!r}; it must be a number of seconds, at least 0")
        options["save_every_s"] = float(value)
    return options


def cache_folder() -> Path:
    """Directory that keeps the verified text: $CHARGPT_CACHE_DIR, or `chargpt` in the user's cache directory."""
    import platformdirs

    return Path(os.environ.get("CHARGPT_CACHE_DIR") or platformdirs.user_cache_dir("chargpt"))


def limit_threads(cgroup: Path = Path("/sys/fs/cgroup")) -> None:
    """Before torch and Numba are loaded, limit their threads to OMP_NUM_THREADS or to a container's CPU quota.

    Threads beyond the quota would wait for one another. cgroup: where the container's limits are mounted.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if not threads and (quota := _cpu_quota(cgroup)) and quota < (os.cpu_count() or 1):
        os.environ["OMP_NUM_THREADS"] = threads = str(max(1, int(quota)))
    os.environ.pop("NUMBA_NUM_THREADS", None)  # one variable decides; Numba would fail for 0
    if threads.isascii() and threads.isdigit() and int(threads):
        os.environ["NUMBA_NUM_THREADS"] = threads


def _cpu_quota(cgroup: Path) -> float | None:
    """The CPUs that a container may use, in version 2 of Linux's control groups; None without a limit."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = map(float, (cgroup / "cpu.max").read_text().split())
        return quota / period
    return None
