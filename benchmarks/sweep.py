"""What a trial costs beyond its stages: as a sweep, in DVC's queue, in a copy and in the workspace; and two workers.

    python benchmarks/sweep.py 4 60           # trials of each way, steps of each; after `dvc repro download`; 15 min

The ways run one after the other on the same machine, in clones of the same commit, each training with one thread.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ruamel.yaml import YAML

from tests.conftest import SIGNED, commit, environment_of, set_value
from tests.pipeline import ROOT

STAGES = ("train", "evaluate", "sample", "export")  # that an experiment runs


class Project:
    """A clone whose data is prepared, with a bare repository as origin. Each trial has another learning rate."""

    def __init__(self, folder: Path, trials: int, steps: int) -> None:
        self.home, self.trials, self.used = folder / "home", trials, 0
        self.environment = environment_of(folder) | SIGNED
        subprocess.run(["git", "clone", "-q", str(ROOT), str(self.home)], check=True)
        set_value(self.home / "params.yaml", max_iters=steps, eval_interval=max(1, steps // 2))
        self("dvc", "repro", "-q", "migrate")
        commit(self.home, "start")
        subprocess.run(["git", "clone", "-q", "--bare", str(self.home), str(folder / "origin.git")], check=True)
        self("git", "remote", "set-url", "origin", str(folder / "origin.git"))

    def __call__(self, *command: str) -> None:
        done = subprocess.run(command, cwd=self.home, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: {done.stdout}{done.stderr}")

    def rates(self) -> Iterator[float]:
        """Learning rates that no trial had, so that none is found in a cache."""
        for _ in range(self.trials):
            self.used += 1
            yield round(0.01 + 0.001 * self.used, 4)

    def stages(self) -> None:
        """Only the stages that an experiment runs, without DVC."""
        for stage in STAGES * self.trials:
            self(sys.executable, "-m", "stages", stage)

    def experiments(self, *options: str) -> None:
        """Experiments of DVC, one after the other."""
        for rate in self.rates():
            self("dvc", "exp", "run", "-q", *options, "-S", f"lr={rate}")

    def queue(self) -> None:
        """Experiments of DVC's queue."""
        self.experiments("--queue")
        self("dvc", "exp", "run", "-q", "--run-all")

    def sweep(self, workers: int) -> None:
        """A sweep over the learning rates."""
        self("git", "reset", "-q", "--hard")
        plan = {"name": f"of-{workers}", "trials": self.trials, "workers": workers, "space": {"lr": list(self.rates())}}
        with (self.home / "mine.yaml").open("w") as file:
            YAML().dump(plan | {"sampler": "BruteForceSampler"}, file)
        self("chargpt", "sweep", "mine.yaml")


def main() -> None:
    trials, steps = (int(word) for word in (sys.argv[1:] or ["8", "500"]))
    folder = Path(tempfile.mkdtemp())
    text = Path("data/tinyshakespeare.txt")
    if text.exists():  # the verified text, which is not downloaded again
        (folder / "cache").mkdir()
        shutil.copyfile(text, folder / "cache/tinyshakespeare.txt")
    project = Project(folder, trials, steps)
    ways: dict[str, Callable[[], None]] = {
        "the stages alone": project.stages,
        "dvc exp run": project.experiments,
        "dvc exp run --temp": lambda: project.experiments("--temp"),
        "dvc exp run --queue, --run-all": project.queue,
        "chargpt sweep, one worker": lambda: project.sweep(1),
        "chargpt sweep, two workers": lambda: project.sweep(2),
    }
    print(f"{os.cpu_count()} cores, {trials} trials of {steps} steps; seconds per trial")
    alone = 0.0
    for name, way in ways.items():
        started = time.perf_counter()
        way()
        seconds = (time.perf_counter() - started) / trials
        alone = alone or seconds
        print(f"{name:<32}{seconds:8.1f}{seconds - alone:+8.1f}", flush=True)


if __name__ == "__main__":
    main()
