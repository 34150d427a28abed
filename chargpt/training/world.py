"""The processes of one training."""

from __future__ import annotations

import re
from types import TracebackType

import torch
import torch.distributed as dist

from chargpt.errors import ChargptError
from chargpt.training.monitor import ALONE, Place, Stopped

LOST = re.compile("gloo|nccl|connection (closed|reset)|broken pipe", re.IGNORECASE)  # in the words of torch


class World:
    """The processes that train together; one of its own is a world too.

    device: to compute on; several processes on GPUs take one each. place: which process this is.
    """

    def __init__(self, device: torch.device, place: Place = ALONE) -> None:
        self.rank, self.size, self.device = place.rank, place.size, device
        if self.size > 1 and device.type == "cuda":
            self.device = torch.device("cuda", place.local_rank)
            torch.cuda.set_device(self.device)

    def __enter__(self) -> World:
        if self.size > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.size > 1 and isinstance(error, RuntimeError) and LOST.search(str(error)):
            raise ChargptError(
                f"process {self.rank}: lost the other processes of this training;"
                " run again, training goes on where it was"
            ) from None
        # After an error the others may never arrive: end at once, and torchrun ends them.
        if self.size > 1 and (kind is None or issubclass(kind, Stopped)):
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
        """Each process's tensor, all of one shape, stacked along a new first dimension."""
        if self.size == 1:
            return value[None]
        values = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(values, value)
        return torch.stack(values)
