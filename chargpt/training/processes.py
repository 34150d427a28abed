"""The processes that train one model together."""

from __future__ import annotations

import re
from types import TracebackType

import torch
import torch.distributed as dist

from chargpt.errors import ChargptError
from chargpt.training.monitor import ALONE, Place, Stopped

# in the messages of torch when another process is gone
LOST = re.compile("gloo|nccl|connection (closed|reset)|broken pipe", re.IGNORECASE)


class World:
    """The processes that train one model together. A single process is a world of size 1.

    device: the device to compute on; if several processes use GPUs, each takes the GPU numbered by its local_rank.
    place: which of the processes this process is.
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
                " run again, training continues from the saved state"
            ) from None
        # After an error, do not wait for the other processes: they may never come, and torchrun will end them.
        if self.size > 1 and (kind is None or issubclass(kind, Stopped)):
            dist.destroy_process_group()

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self.size > 1:
            dist.barrier()

    def max(self, value: int) -> int:
        """The largest value of all processes, so that all of them make the same decision."""
        if self.size == 1:
            return value
        largest = torch.tensor(value, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over all processes, element by element."""
        if self.size > 1:
            dist.all_reduce(value)
            value = value / self.size
        return value

    def gather(self, value: torch.Tensor) -> torch.Tensor:
        """The tensors of all processes, which have the same shape, stacked along a new first dimension."""
        if self.size == 1:
            return value[None]
        values = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(values, value)
        return torch.stack(values)
