"""What a trial costs beyond its training, as a sweep, in DVC's queue, in a copy and in the workspace; and two workers.

    python benchmarks/sweep.py 4 60           # trials of each way, updates of each; after `dvc repro download`; 15 min

The ways run one after the other on the same machine, in clones of the same commit, each training with one thread.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ruamel.yaml import YAML

from tests.conftest import SIGNED, commit, environment_of, set_value
from tests.pipeline import ROOT

RATES = [0.01 + 0.001 * i for i in range(100)]  # a learning rate for each trial, so that none is found in a cache


class Project:
    """A clone whose data is prepared, with a bare repository as origin."""

    def __init__(self, folder: Path, updates: int) -> None:
        self.home = folder / "home"
        self.environment = environment_of(folder) | SIGNED
        subprocess.run(["git", "clone", "-q", str(ROOT), str(self.home)], check=True)
        set_value(self.home / "params.yaml", max_iters=updates, eval_interval=max(1, updates // 2))
        self("dvc", "repro", "-q", "migrate")
        commit(self.home, "start")
        subprocess.run(["git", "clone", "-q", "--bare", str(self.home), str(folder / "origin.git")], check=True)
        self("git", "remote", "set-url", "origin", str(folder / "origin.git"))
        self("git", "fetch", "-q", "origin")

    def __call__(self, *command: str) -> None:
        done = subprocess.run(command, cwd=self.home, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: {done.stdout}{done.stderr}")

    def sweep(self, workers: int, rates: list[float]) -> None:
        """One trial for each learning rate."""
        self("git", "reset", "-q", "--hard")
        plan = {"name": f"of-{workers}", "trials": len(rates), "workers": workers, "space": {"lr": rates}}
        with (self.home / "mine.yaml").open("w") as file:
            YAML().dump(plan | {"sampler": "BruteForceSampler"}, file)
        self("chargpt", "sweep", "mine.yaml")


def main() -> None:
    trials, updates = (int(word) for word in (sys.argv[1:] or ["8", "500"]))
    folder = Path(tempfile.mkdtemp())
    text = Path("data/input.txt")
    if text.exists():  # the verified text, which is not downloaded again
        (folder / "cache").mkdir()
        shutil.copyfile(text, folder / "cache/tinyshakespeare.txt")
    project = Project(folder, updates)
    rates = iter(RATES)

    def some() -> list[float]:
        return [round(next(rates), 4) for _ in range(trials)]

    def training() -> None:
        """Only the stages that an experiment runs, without DVC."""
        for _ in range(trials):
            for stage in ("train", "evaluate", "sample", "export"):
                project(sys.executable, "-m", "stages", stage)

    def workspace() -> None:
        for rate in some():
            project("dvc", "exp", "run", "-q", "-S", f"lr={rate}")

    def copy() -> None:
        for rate in some():
            project("dvc", "exp", "run", "-q", "--temp", "-S", f"lr={rate}")

    def queue() -> None:
        for rate in some():
            project("dvc", "exp", "run", "-q", "--queue", "-S", f"lr={rate}")
        project("dvc", "exp", "run", "-q", "--run-all")

    ways: dict[str, Callable[[], None]] = {
        "the stages alone": training,
        "dvc exp run": workspace,
        "dvc exp run --temp": copy,
        "dvc exp run --queue, --run-all": queue,
        "chargpt sweep, one worker": lambda: project.sweep(1, some()),
        "chargpt sweep, two workers": lambda: project.sweep(2, some()),
    }
    print(f"{os.cpu_count()} cores, {trials} trials of {updates} updates; seconds a trial")
    alone = 0.0
    for name, way in ways.items():
        started = time.perf_counter()
        way()
        seconds = (time.perf_counter() - started) / trials
        alone = alone or seconds
        print(f"{name:<32}{seconds:8.1f}{seconds - alone:+8.1f}", flush=True)


if __name__ == "__main__":
    main()
