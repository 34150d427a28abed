"""What a training reports to the program around it, and how that program stops it. Does not load torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from chargpt.evaluation.curve import Row

if TYPE_CHECKING:
    from torch import Tensor


class Rank(NamedTuple):
    """Which of the processes of a training this is, in torchrun's terms. Rank 0 reports and writes the files."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


ALONE = Rank()


@dataclass(frozen=True)
class Started:
    """Training starts or continues. step: the next step. max_iters: the last. rows: the curve up to here.

    batch: characters to predict in each step, over all processes together.
    """

    step: int
    max_iters: int
    batch: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Stepped:
    """A step was made. step: their number so far. loss: of the batch, a scalar that is still on the device."""

    step: int
    loss: Tensor


@dataclass(frozen=True)
class Log:
    """A line of text for the user."""

    text: str


Event = Started | Stepped | Row | Log
Report = Callable[[Event], None]


class Stopped(Exception):
    """Training was stopped from outside. reason: in words. status: the exit status that tells it to the caller."""

    def __init__(self, reason: str, status: int = 1) -> None:
        super().__init__(reason)
        self.reason, self.status = reason, status


ShouldStop = Callable[[], Stopped | None]  # asked before every step, and between the batches of an evaluation


def ignore(event: Event) -> None:
    """Report nothing."""


def never() -> None:
    """Never stop."""
