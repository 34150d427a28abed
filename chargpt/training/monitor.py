"""How a training run is watched, stopped and kept, by whoever starts it. Loads no torch, which takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from chargpt.params import Params
    from chargpt.training.curve import Row


@dataclass(frozen=True)
class Place:
    """Which of `size` processes of a training this is: rank 0 writes; local_rank counts on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


ALONE = Place()


class Stopped(Exception):
    """Training was stopped from outside; its state is saved where there was a place for it."""


class Monitor:
    """Watches a training run: derive from it what is wanted. This one stays silent and never stops a run.

    The run enters it, as a context, for as long as it can be stopped and continued.
    """

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        """Tell a person one thing, in one line."""

    def started(self, step: int) -> None:
        """Updates begin, with this one: 0, or a later one where a saved run continues."""

    def stepped(self, losses: Sequence[Tensor]) -> None:
        """An update was made; `losses` are those since the last evaluation, not yet fetched from the device."""

    def evaluated(self, row: Row) -> None:
        """The whole validation split was evaluated."""

    def stop_reason(self) -> str:
        """Why to save and stop now, or nothing to go on; asked before every update."""
        return ""


@dataclass(frozen=True)
class Surroundings:
    """What the program around a run provides; by default nothing: no progress, no saved state.

    state_root: directory for the states of unfinished runs. save_every_s: seconds between saves. fresh: ignore a saved
    state. runs_here: trainings that share this machine's cores. place: which process of several this is.
    reread: the parameters as params.yaml has them now.
    """

    monitor: Monitor = field(default_factory=Monitor)
    state_root: Path | None = None
    save_every_s: float = 15.0
    fresh: bool = False
    runs_here: int = 1
    place: Place = ALONE
    reread: Callable[[], Params] | None = None
