"""What to compute on: device, number format, and how many processes."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from types import TracebackType

import torch
import torch.distributed as dist

from chargpt.errors import ChargptError
from chargpt.params import DEVICES

LOST = re.compile("gloo|nccl|connection (closed|reset)|broken pipe", re.IGNORECASE)  # in the words of torch


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
        raise ChargptError(f"device {device} is not available here; use auto (-S device=auto, --device auto)")
    return torch.device(device)


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The number format of matrix products while training; weights stay float32.

    `auto` takes bfloat16 where a GPU or the processor's matrix units (Intel AMX) compute it natively, else float32.
    Raises ChargptError if the device cannot do what is asked for.
    """
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        native = device.type == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16"))
    if dtype == "bfloat16" and device.type == "mps":
        raise ChargptError("dtype bfloat16 is not supported on mps; use -S dtype=float32")
    if dtype == "bfloat16" and device.type == "cuda" and not native:
        raise ChargptError(f"dtype bfloat16 is not supported by {device}; use -S dtype=float32")
    return torch.bfloat16 if dtype == "bfloat16" or (dtype == "auto" and native) else torch.float32


def launch(options: list[str], module: str) -> None:
    """Run a module in several processes with torchrun, on this machine and those that its environment names.

    Exits as the first process that fails, which says why itself. Raises ChargptError if a signal ended it.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # pages about what is said in a line
    try:
        run.run(run.parse_args([*options, "-m", module]))
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            sys.exit(failure.exitcode)
        name = signal.Signals(-failure.exitcode).name
        raise ChargptError(f"process {rank} was ended by {name}; run again, training goes on where it was") from None


class World:
    """The processes that train together: one, or those that torchrun started.

    rank: this process's number, 0 is the one that writes. size: how many there are.
    Source: PyTorch's torchrun environment variables.
    """

    def __init__(self, device: torch.device) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else 1
        self.rank = int(os.environ["RANK"]) if self.size > 1 else 0
        self.device = device
        if self.size > 1 and device.type == "cuda":
            self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(self.device)

    def __enter__(self) -> World:
        if self.size > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.size > 1 and isinstance(error, RuntimeError) and LOST.search(str(error)):
            raise ChargptError(f"process {self.rank}: lost the other processes of this training") from None
        # After an error the others may never arrive: end at once, and torchrun ends them.
        if self.size > 1 and (kind is None or issubclass(kind, SystemExit)):
            dist.destroy_process_group()

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()

    def max(self, value: int) -> int:
        """The largest value of any process, so that all decide alike."""
        if self.size == 1:
            return value
        largest = torch.tensor(value, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean over processes."""
        if self.size > 1:
            dist.all_reduce(value)
            value = value / self.size
        return value

    def gather(self, value: torch.Tensor) -> torch.Tensor:
        """The processes' values, one under the other, of which each has the same shape."""
        if self.size == 1:
            return value[None]
        values = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(values, value)
        return torch.stack(values)
