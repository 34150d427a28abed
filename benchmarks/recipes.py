"""The recipes of docs/recipes.md, one after the other: how long each trains, and the loss that it reaches.

    python benchmarks/recipes.py                                   # after `dvc repro prepare`
    python benchmarks/recipes.py --set dtype=float32 --seeds 3     # with changes, and more than one seed

Seconds count from the start of the process to its last evaluation: without saving, and without the other stages.
"""

from __future__ import annotations

import argparse
import re
import statistics
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from train import child

PAGE = Path("docs/recipes.md")


def recipes() -> dict[str, dict[str, Any]]:
    """The changes to params.yaml of each recipe on the page, by its command."""
    read = YAML(typ="safe").load
    commands = re.findall(r"^(dvc repro|dvc exp run (?:.*\\\n)*.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {
        " ".join(command.replace("\\\n", " ").split()): {
            key: read(value) for key, value in re.findall(r"-S (\w+)=(\S+)", command)
        }
        for command in commands
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes to every recipe")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each recipe; the median is shown")
    parser.add_argument("--only", default="", help="recipes whose command holds this text")
    given = parser.parse_args()
    read = YAML(typ="safe").load
    more = {key: read(value) for key, value in (change.split("=", 1) for change in given.set)}
    print(f"{'seconds':>8}{'val_loss':>10}  each loss, and the command")
    for command, changes in recipes().items():
        if given.only in command:
            runs = [child("chargpt", changes=changes | more | {"seed": 1337 + i}) for i in range(given.seeds)]
            seconds = statistics.median(run["total_s"] for run in runs)
            losses = [run["loss"] for run in runs]
            each = " ".join(f"{loss:.4f}" for loss in losses)
            print(f"{seconds:8.0f}{statistics.median(losses):10.4f}  {each}  {command}", flush=True)


if __name__ == "__main__":
    main()
