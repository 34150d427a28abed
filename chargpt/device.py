"""Choose the device to compute on and the dtype. Loads torch only when it is asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from chargpt.errors import ChargptError

if TYPE_CHECKING:
    import torch

DEVICE_PATTERN = r"^(auto|cpu|mps|cuda(:(0|[1-9][0-9]{0,2}))?)$"
DEVICE_WORDS = "one of auto, cpu, mps, cuda, cuda:N"


def pick_device(device: str) -> torch.device:
    """The torch device for a value of `device` in params.yaml. `auto` is cuda if there is one, otherwise cpu.

    `mps` is chosen only by name: nobody has measured it, and small models are faster on a CPU.
    Raises ChargptError if the device is not available.
    """
    import torch

    if not re.fullmatch(DEVICE_PATTERN, device):
        raise ChargptError(f"device is {device!r}; it must be {DEVICE_WORDS}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    found = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}[kind]
    if int(number or 0) >= found:
        raise ChargptError(f"device {device} is not available here; use auto (-S device=auto, --device auto)")
    return torch.device(device)


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products in training. Weights stay float32.

    `auto` is bfloat16 on a GPU that computes it natively, a CPU with AMX and an AMD CPU with AVX-512 BF16, otherwise
    float32. Without AMX, Intel's AVX-512 BF16 is slower than float32 at these sizes.
    Raises ChargptError if the device does not support `dtype`.
    """
    import torch

    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        native = bool(capabilities.get("amx_bf16") or (capabilities.get("avx512_bf16") and _from_amd()))
    if dtype == "bfloat16" and device.type != "cpu" and not native:
        raise ChargptError(f"dtype bfloat16 is not supported by {device}; use -S dtype=float32")
    return torch.bfloat16 if dtype == "bfloat16" or (dtype == "auto" and native) else torch.float32


def _from_amd() -> bool:
    """Whether AMD made the CPU, as far as Linux tells."""
    info = Path("/proc/cpuinfo")
    return info.is_file() and "AuthenticAMD" in info.read_text(encoding="utf-8", errors="replace")
