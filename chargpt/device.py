"""Choose the device to compute on and the number format."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch

from chargpt.errors import ChargptError


def pick_device(device: str) -> torch.device:
    """The torch device for a value of `device` in params.yaml. `auto` takes the first available of cuda, mps, cpu.

    Raises ChargptError if the device is not available.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    match = re.fullmatch(r"(cpu|mps|cuda)|(cuda):(0|[1-9][0-9]{0,2})", device)
    if not match:
        raise ChargptError(f"device is {device!r}; it must be one of auto, cpu, mps, cuda, cuda:N")
    here = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}[
        match[1] or match[2]
    ]
    if int(match[3] or 0) >= here:
        raise ChargptError(f"device {device} is not available here; use auto (-S device=auto, --device auto)")
    return torch.device(device)


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The number format of matrix products in training. Weights stay float32.

    `auto` takes bfloat16 if a GPU or the processor computes it natively (AMX or AVX-512 BF16), else float32.
    Raises ChargptError if the device does not support `dtype`.
    """
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        native = any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))
    if dtype == "bfloat16" and device.type == "mps":
        raise ChargptError("dtype bfloat16 is not supported on mps; use -S dtype=float32")
    if dtype == "bfloat16" and device.type == "cuda" and not native:
        raise ChargptError(f"dtype bfloat16 is not supported by {device}; use -S dtype=float32")
    return torch.bfloat16 if dtype == "bfloat16" or (dtype == "auto" and native) else torch.float32


def share_cores(runs: int, say: Callable[[str], None]) -> None:
    """Limit torch to this run's share of the threads: threads that take turns on a core slow one another down.

    runs: trainings on this machine, this one included. say: called with a line for the user if the limit changes.
    """
    threads = torch.get_num_threads()
    share = max(1, threads // runs)
    if share < threads:
        say(f"{runs} runs share this machine: computing with {share} of {threads} threads")
        torch.set_num_threads(share)
