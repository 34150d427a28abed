"""The processes of one training; test_distributed.py starts real ones, which takes longer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor

from chargpt.errors import ChargptError
from chargpt.training import world as world_module
from chargpt.training.monitor import Place, Stopped
from chargpt.training.world import World

CPU = torch.device("cpu")


class Threads:
    """Stands in for torch.distributed: two threads are the processes, and wait for each other in every call."""

    ReduceOp = torch.distributed.ReduceOp

    def __init__(self) -> None:
        self.meeting = threading.Barrier(2, timeout=10)
        self.brought: dict[int, Tensor] = {}
        self.groups: list[str] = []

    def all_gather(self, values: list[Tensor], value: Tensor) -> None:
        rank = int(threading.current_thread().name)
        self.meeting.wait()
        self.brought[rank] = value.clone()
        self.meeting.wait()
        for rank, place in enumerate(values):
            place.copy_(self.brought[rank])

    def all_reduce(self, value: Tensor, op: Any = ReduceOp.SUM) -> None:
        both = [torch.empty_like(value) for _ in range(2)]
        self.all_gather(both, value)
        value.copy_(torch.stack(both).sum(0) if op == self.ReduceOp.SUM else torch.stack(both).amax(0))

    def barrier(self) -> None:
        self.meeting.wait()

    def init_process_group(self, backend: str) -> None:
        self.groups.append(backend)

    def destroy_process_group(self) -> None:
        self.groups.append("destroyed")


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    stand_in = Threads()
    monkeypatch.setattr(world_module, "dist", stand_in)
    return stand_in


def together(action: Callable[[World], Any]) -> list[Any]:
    """What the action returns in each of two processes."""
    results: dict[int, Any] = {}

    def run(rank: int) -> None:
        results[rank] = action(World(CPU, Place(rank, 2, rank)))

    running = [threading.Thread(target=run, args=(rank,), name=str(rank), daemon=True) for rank in range(2)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return [results.get(rank) for rank in range(2)]


def test_all_learn_the_largest(threads: Threads) -> None:
    assert together(lambda world: [world.max(value) for value in (world.rank, 1 - world.rank, 7)]) == [[1, 1, 7]] * 2


def test_all_learn_the_mean(threads: Threads) -> None:
    values = together(lambda world: world.mean(torch.tensor([1.0, 10.0 * world.rank])))
    assert [value.tolist() for value in values] == [[1.0, 5.0]] * 2


def test_all_learn_what_each_has(threads: Threads) -> None:
    values = together(lambda world: world.gather(torch.tensor([world.rank, 5])))
    assert [value.tolist() for value in values] == [[[0, 5], [1, 5]]] * 2


def test_none_goes_on_before_all_are_here(threads: Threads) -> None:
    here: list[int] = []

    def arrive(world: World) -> int:
        here.append(world.rank)
        world.wait()
        return len(here)

    assert together(arrive) == [2, 2]


def test_one_process_needs_no_others(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_module, "dist", None)
    with World(CPU) as world:
        world.wait()
        assert (world.rank, world.size, world.device) == (0, 1, CPU)
        assert (world.max(3), world.mean(torch.tensor(2.0)).item()) == (3, 2.0)
        assert world.gather(torch.tensor([1, 2])).tolist() == [[1, 2]]
    with pytest.raises(RuntimeError, match="gloo"), world:
        raise RuntimeError("gloo")


def test_processes_form_a_group_and_leave_it(threads: Threads) -> None:
    with World(CPU, Place(0, 2)):
        assert threads.groups == ["gloo"]
    with pytest.raises(Stopped), World(CPU, Place(0, 2)):
        raise Stopped
    assert threads.groups == ["gloo", "destroyed"] * 2


@pytest.mark.parametrize("error", [ChargptError("a"), RuntimeError("a"), KeyboardInterrupt()])
def test_after_an_error_nobody_waits_for_the_others(threads: Threads, error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, World(CPU, Place(0, 2)):
        raise error
    assert raised.value is error
    assert threads.groups == ["gloo"]


@pytest.mark.parametrize(
    "words", ["[gloo] Timed out", "NCCL error", "Connection closed by peer", "connection reset", "Broken pipe"]
)
def test_lost_processes_are_one_line(threads: Threads, words: str) -> None:
    message = r"^process 1: lost the other processes of this training; run again, training continues from the saved"
    with pytest.raises(ChargptError, match=message), World(CPU, Place(1, 2)):
        raise RuntimeError(f"x {words} x")
    with pytest.raises(ValueError, match="x"), World(CPU, Place(1, 2)):
        raise ValueError(words + "x")


def test_each_process_takes_a_gpu(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one of its number on its machine; a process on its own takes the one that was asked for."""
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    with World(torch.device("cuda"), Place(5, 8, 1)) as world:
        assert world.device == torch.device("cuda:1")
        assert threads.groups == ["nccl"]
    assert World(torch.device("cuda"), Place(1, 2, 0)).device == torch.device("cuda:0")
    assert World(torch.device("cuda:3"), Place(0, 1, 0)).device == torch.device("cuda:3")
    assert World(CPU, Place(1, 2, 1)).device == CPU
    assert taken == [torch.device("cuda:1"), torch.device("cuda:0")]
