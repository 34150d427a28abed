"""The processes that train one model together."""

from __future__ import annotations

import json
import re
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from chargpt.errors import ChargptError
from chargpt.training.events import ALONE, Rank, Stopped

Checkpoint = tuple[dict[str, Tensor], dict[str, Any]]  # float32 tensors by name, and JSON values by name
# in the messages of torch when another process is gone
LOST = re.compile("gloo|nccl|connection (closed|reset)|broken pipe", re.IGNORECASE)


class ProcessGroup:
    """The processes that train one model together; a single process is a group of size 1.

    device: the device to compute on; of several processes on GPUs, each takes the GPU numbered by its local rank.
    """

    def __init__(self, device: torch.device, rank: Rank = ALONE) -> None:
        self.rank, self.size, local_rank = rank
        self.device = device
        if self.size > 1 and device.type == "cuda":
            self.device = torch.device("cuda", local_rank)
            torch.cuda.set_device(self.device)

    def __enter__(self) -> ProcessGroup:
        if self.size > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.size > 1 and isinstance(error, RuntimeError) and LOST.search(str(error)):
            raise ChargptError(
                f"rank {self.rank}: lost the other processes of this training; run the same command to continue from"
                " the last checkpoint"
            ) from None
        # After an error, do not wait for the other processes: they may never come, and torchrun ends them.
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

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes, element by element."""
        if self.size > 1:
            dist.all_reduce(value)
            value = value / self.size
        return value

    def gather(self, value: Tensor) -> Tensor:
        """The tensors of all processes, which have the same shape, stacked along a new first dimension."""
        if self.size == 1:
            return value[None]
        values = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(values, value)
        return torch.stack(values)

    def broadcast(self, checkpoint: Checkpoint | None) -> Checkpoint | None:
        """Rank 0's checkpoint, or None if it has none; the others pass None, because they may lack rank 0's disk."""
        if self.size == 1:
            return checkpoint
        tensors, facts = checkpoint or ({}, {})
        about = json.dumps([facts, {name: t.shape for name, t in tensors.items()}]).encode() if checkpoint else b""
        text = torch.zeros(self.max(len(about)), dtype=torch.uint8, device=self.device)
        if not len(text):
            return None
        if about:
            text.copy_(torch.frombuffer(bytearray(about), dtype=torch.uint8))
        dist.broadcast(text, 0)
        facts, shapes = json.loads(bytes(text.tolist()))
        received = {}
        for name, shape in shapes.items():
            received[name] = tensors[name].to(self.device) if about else torch.empty(shape, device=self.device)
            dist.broadcast(received[name], 0)
        return received, facts
