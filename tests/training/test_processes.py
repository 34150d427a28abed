"""The processes of one training: two real ones; test_distributed.py starts them as torchrun does."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from chargpt.errors import ChargptError
from chargpt.training import processes
from chargpt.training.events import Rank, Stopped
from chargpt.training.processes import ProcessGroup
from tests.conftest import free_ports
from tests.pipeline import ROOT

CPU = torch.device("cpu")
# what each of two processes sees, as JSON
PROCESS = """
import json, sys, time
import torch
import torch.distributed as dist
from chargpt.errors import ChargptError
from chargpt.training.events import Rank, Stopped
from chargpt.training.processes import ProcessGroup

rank = int(sys.argv[1])
seen = {}
with ProcessGroup(torch.device("cpu"), Rank(rank, 2, rank)) as group:
    seen["backend"] = dist.get_backend()
    seen["max"] = [group.max(value) for value in (rank, 1 - rank, 7)]
    seen["mean"] = group.mean(torch.tensor([1.0, 10.0 * rank])).tolist()
    checkpoint = ({"x": torch.arange(6.0).view(2, 3), "y": torch.tensor(2.0)}, {"rows": [[1, float("inf")]]})
    tensors, facts = group.broadcast(checkpoint if rank == 0 else None)
    seen["broadcast"] = [tensors["x"].tolist(), tensors["y"].item(), facts, group.broadcast(None)]
    seen["gather"] = group.gather(torch.tensor([rank, 5])).tolist()
    time.sleep(0.5 * rank)
    arrived = time.time()
    group.wait()
    seen["waited for the other"] = [arrived, time.time()]
seen["after the end"] = dist.is_initialized()
try:
    with ProcessGroup(torch.device("cpu"), Rank(rank, 2, rank)):
        raise Stopped("enough")
except Stopped:
    seen["after a stop"] = dist.is_initialized()
try:
    with ProcessGroup(torch.device("cpu"), Rank(rank, 2, rank)):
        raise ChargptError("a")
except ChargptError:
    seen["after an error"] = dist.is_initialized()
print(json.dumps(seen))
"""


def test_two_processes() -> None:
    """All learn the largest value, the mean, and what each has; none goes on before all are here.

    After an error the group is left as it is, because the other process may never come to leave it too.
    """
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0]), "WORLD_SIZE": "2"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank)],
            cwd=ROOT,
            env=os.environ | address | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    seen: list[dict[str, Any]] = [json.loads(process.communicate(timeout=120)[0]) for process in running]
    for rank, mine in enumerate(seen):
        assert mine["backend"] == "gloo"
        assert mine["max"] == [1, 1, 7]
        assert mine["mean"] == [1.0, 5.0]
        assert mine["broadcast"] == [[[0, 1, 2], [3, 4, 5]], 2, {"rows": [[1, math.inf]]}, None]
        assert mine["gather"] == [[0, 5], [1, 5]]
        assert mine["waited for the other"][1] >= seen[1 - rank]["waited for the other"][0]
        assert (mine["after the end"], mine["after a stop"], mine["after an error"]) == (False, False, True)


def test_one_process_is_a_group() -> None:
    with ProcessGroup(CPU) as group:
        group.wait()
        assert (group.rank, group.size, group.device) == (0, 1, CPU)
        assert (group.max(3), group.mean(torch.tensor(2.0)).item()) == (3, 2.0)
        assert group.gather(torch.tensor([1, 2])).tolist() == [[1, 2]]
        assert group.broadcast(({}, {"a": 1})) == ({}, {"a": 1})
    assert not torch.distributed.is_initialized()
    with pytest.raises(RuntimeError, match="gloo"), group:
        raise RuntimeError("gloo")


class Groups:
    """Notes which groups of processes are asked for, where the others (or their GPUs) are not here."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def init_process_group(self, backend: str) -> None:
        self.made.append(backend)

    def destroy_process_group(self) -> None:
        pass


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> Groups:
    noted = Groups()
    monkeypatch.setattr(processes, "dist", noted)
    return noted


@pytest.mark.parametrize("error", [ChargptError("a"), Stopped("enough"), RuntimeError("a"), KeyboardInterrupt()])
def test_errors_pass_through(groups: Groups, error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, ProcessGroup(CPU, Rank(0, 2)):
        raise error
    assert raised.value is error


@pytest.mark.parametrize(
    "words", ["[gloo] Timed out", "NCCL error", "Connection closed by peer", "connection reset", "Broken pipe"]
)
def test_lost_processes_are_one_line(groups: Groups, words: str) -> None:
    message = (
        "^rank 1: lost the other processes of this training; run the same command to continue from the last checkpoint"
    )
    with pytest.raises(ChargptError, match=message), ProcessGroup(CPU, Rank(1, 2)):
        raise RuntimeError(f"x {words} x")
    with pytest.raises(ValueError, match="x"), ProcessGroup(CPU, Rank(1, 2)):
        raise ValueError(words + "x")


def test_each_process_takes_a_gpu(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one of its number on its machine; a process on its own takes the one that was asked for."""
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    with ProcessGroup(torch.device("cuda"), Rank(5, 8, 1)) as group:
        assert group.device == torch.device("cuda:1")
        assert groups.made == ["nccl"]
    assert ProcessGroup(torch.device("cuda"), Rank(1, 2, 0)).device == torch.device("cuda:0")
    assert ProcessGroup(torch.device("cuda:3"), Rank(0, 1, 0)).device == torch.device("cuda:3")
    assert ProcessGroup(CPU, Rank(1, 2, 1)).device == CPU
    assert taken == [torch.device("cuda:1"), torch.device("cuda:0")]
