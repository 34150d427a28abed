"""What `dvc repro` costs when nothing changed, beside a bare DVC project with as many stages.

    dvc repro && python benchmarks/noop.py

The bare project's stages have one dependency and one output each. Both are run alternately; the first run of each,
which fills DVC's own caches, does not count.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML

RUNS = 9
ROOT = Path(__file__).resolve().parents[1]


def make_bare_project(folder: Path, stages: int) -> None:
    """A chain of stages that each copy a file."""
    (folder / "0.txt").write_text("text\n")
    graph = {
        f"stage{i}": {"cmd": f"cp {i}.txt {i + 1}.txt", "deps": [f"{i}.txt"], "outs": [f"{i + 1}.txt"]}
        for i in range(stages)
    }
    with (folder / "dvc.yaml").open("w") as file:
        YAML().dump({"stages": graph}, file)
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "config", "core.analytics", "false"]):
        subprocess.run(command, cwd=folder, check=True)
    subprocess.run(["dvc", "repro", "-q"], cwd=folder, check=True)


def seconds(folder: Path) -> float:
    """Of one `dvc repro` that has nothing to do."""
    started = time.perf_counter()
    done = subprocess.run(["dvc", "repro"], cwd=folder, capture_output=True, text=True, check=True)
    took = time.perf_counter() - started
    if "up to date" not in done.stdout:
        sys.exit(f"{folder}: something ran; run `dvc repro` first")
    return took


def main() -> None:
    stages = len(YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"])
    with tempfile.TemporaryDirectory() as name:
        bare = Path(name)
        make_bare_project(bare, stages)
        times = [(seconds(ROOT), seconds(bare)) for _ in range(RUNS + 1)][1:]
    ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"chargpt {ours:.2f} s, bare project with {stages} stages {theirs:.2f} s: {ours / theirs:.2f} times")


if __name__ == "__main__":
    main()
