"""How the program that starts a training run watches it, stops it, and says where to keep its state.

This module does not load torch, because that takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from chargpt.evaluation.curve import Row
    from chargpt.params import Params


SAVE_EVERY_S = 15.0  # seconds between two saves of the state


@dataclass(frozen=True)
class Place:
    """Which of the `size` processes of a training this process is.

    rank: its number among all processes; 0 writes the files. local_rank: its number among those of this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0


ALONE = Place()


class Stopped(Exception):
    """Training was stopped from outside. Its state is saved if the run was given a place to save it."""


class Monitor:
    """Watches a training run. Subclasses override what they need; this class is silent and never stops a run.

    The run enters the monitor as a context manager, and stays in it for as long as the monitor may stop the run.
    """

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        """Show one line of text to the user."""

    def started(self, step: int, max_iters: int) -> None:
        """Updates begin. step: number of the next update; 0, or more if a saved run continues. max_iters: their end."""

    def stepped(self, losses: Sequence[Tensor]) -> None:
        """An update was made. losses: scalars of all updates since the last evaluation, still on the device."""

    def evaluated(self, row: Row) -> None:
        """The whole validation split was evaluated, with the losses in `row`."""

    def stop_reason(self) -> str:
        """The reason to save and stop now, or an empty string to continue. Called before every update."""
        return ""


@dataclass(frozen=True)
class Surroundings:
    """What the program that starts a run provides. By default: no progress, no saved state.

    monitor: watches the run, and may stop it. state_root: directory for the states of unfinished runs; None saves none.
    save_every_s: seconds between saves. fresh: ignore a saved state. runs_here: number of trainings that share this
    machine's cores, this one included. place: which of several processes this process is.
    reread: reads params.yaml again, to find out whether it was edited.
    """

    monitor: Monitor = field(default_factory=Monitor)
    state_root: Path | None = None
    save_every_s: float = SAVE_EVERY_S
    fresh: bool = False
    runs_here: int = 1
    place: Place = ALONE
    reread: Callable[[], Params] | None = None
