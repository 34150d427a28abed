"""Which device to compute on."""

from __future__ import annotations

import re

import torch

from chargpt.errors import ChargptError
from chargpt.params import DEVICES


def pick_device(device: str) -> torch.device:
    """The torch device of a params.yaml value; `auto` takes cuda, then mps, then cpu.

    Raises ChargptError if it is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(DEVICES, device):
        raise ChargptError(f"device is {device!r}; it must be one of auto, cpu, mps, cuda, cuda:N")
    kind, _, number = device.partition(":")
    here = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}[kind]
    if int(number or 0) >= here:
        raise ChargptError(f"device {device} is not available here; use -S device=auto")
    return torch.device(device)
