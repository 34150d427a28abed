"""Faults brought about for real, at exact moments, in a stage of a small project; also for benchmarks/faults.py."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests import conftest
from tests.conftest import IDENTITY, clone, write_params
from tests.pipeline import ROOT

STAGES: dict[str, Any] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
OLD = b"what an earlier run wrote\n"
HF_FILES = (
    "README.md",
    "config.json",
    "model.safetensors",
    "onnx/model.onnx",
    "tokenizer.json",
    "tokenizer_config.json",
)

# Runs a stage as `python -m stages NAME` does; at a moment that Python's audit events tell, something happens.
RUNNER = """
import os, runpy, shutil, signal, sys
stage, event, part, count, action = sys.argv[1:6]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores Ctrl-C
left = int(count)
def hook(name, arguments):
    global left
    if left and name == event and any(part in str(a) for a in arguments):
        left -= 1
        if not left:
            kind, _, what = action.partition(" ")
            if kind == "kill":
                os.kill(os.getpid(), int(what))
            elif kind == "unlink":
                os.unlink(what)
            elif kind == "write":
                with open(what.split()[0], "w") as file:
                    file.write(what.split()[1])
sys.addaudithook(hook)
sys.argv = ["stages", stage]
runpy.run_module("stages", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Moment:
    """The `count`-th audit event of this name with `part` in one of its arguments; https://peps.python.org/pep-0578"""

    event: str
    part: str
    count: int = 1


NEVER = Moment("never", "")


def outputs(stage: str) -> list[str]:
    """The files that a stage writes, those of a directory one by one."""
    about = STAGES[stage]
    names = [next(iter(out)) if isinstance(out, dict) else out for out in about["outs"] + about.get("metrics", [])]
    if stage == "export":
        return [f"{names[0]}/{file}" for file in HF_FILES]
    return sorted(names)


def inputs(stage: str, corpus: str) -> list[str]:
    """The data that a stage reads."""
    known = {"${corpus}": corpus, "${legacy_dir}": "data/legacy"}
    deps = [known.get(dep, dep) for dep in STAGES[stage].get("deps", [])]
    return [dep for dep in deps if not dep.startswith(("chargpt/", "stages/"))]


def moments(stage: str) -> dict[str, Moment]:
    """When a signal is worst: while libraries load, before the first output is in its place, before the last is."""
    library = {"download": "chargpt.text.download", "prepare": "numpy"}.get(stage, "torch")
    loading = {"import": Moment("import", library)}
    if library == "torch":  # whose own code discards exceptions while it loads numpy
        loading["numpy"] = Moment("import", "numpy.linalg")
    found = loading | {"first write": Moment("os.rename", outputs(stage)[0])}
    if stage == "train":
        found = loading | {"middle": Moment("os.rename", "state.safetensors", 5)}
        found["last write"] = Moment("os.rename", "model.safetensors")
    elif stage == "evaluate":
        found = loading | {"first write": Moment("os.rename", "positions.tsv")}
        found["last write"] = Moment("os.rename", "evaluate.json")
    elif len(outputs(stage)) > 1:
        first, last = {
            "prepare": ("data/tokens", "vocab.json"),
            "migrate": ("migrated.safetensors", "migrate.json"),
            "export": ("hf/README.md", "hf/tokenizer_config.json"),
        }[stage]
        found |= {"first write": Moment("os.rename", first), "last write": Moment("os.rename", last)}
    return found


def make_project(folder: Path, environment: dict[str, str], **changes: Any) -> dict[str, str]:
    """A project with toy sizes, run once undisturbed; the sha256 of every output and of dvc.lock."""
    clone(folder)
    # 65 characters, as many as the committed legacy model knows, so that it is really migrated
    text = "".join(random.Random(0).choices([chr(code) for code in range(65, 130)], k=6000))
    (folder / "data/mine.txt").write_text(text, encoding="utf-8")
    settings = {"corpus": "data/mine.txt", "prompt": "A", "dialect": "relu-embedding", "max_iters": 40} | changes
    write_params(folder / "params.yaml", **settings)
    for command in (["init", "-q"], ["add", "--all"], ["commit", "-q", "-m", "start"]):
        subprocess.run(["git", *IDENTITY, *command], cwd=folder, check=True)
    repro(folder, environment)
    return snapshot(folder)


def repro(folder: Path, environment: dict[str, str]) -> str:
    """`dvc repro`, which must succeed; what it said."""
    done = subprocess.run(["dvc", "repro"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def snapshot(folder: Path) -> dict[str, str]:
    """sha256 of every output that is there, and what dvc.lock says, whose stages have no order."""
    names = [name for stage in STAGES for name in outputs(stage) if (folder / name).is_file()]
    lock = json.dumps(YAML(typ="safe").load(folder / "dvc.lock"), sort_keys=True)
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names} | {"dvc.lock": lock}


def set_back(folder: Path, stage: str) -> None:
    """As if the stage were to run again: other outputs lie there, and neither dvc.lock nor the run cache knows it."""
    shutil.rmtree(folder / ".dvc/cache/runs", ignore_errors=True)
    for name in outputs(stage):
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(OLD)
    yaml = YAML()
    lock = yaml.load((folder / "dvc.lock").read_text())
    lock["stages"].pop(stage, None)
    yaml.dump(lock, folder / "dvc.lock")


def run_stage(
    folder: Path,
    stage: str,
    environment: dict[str, str],
    moment: Moment = NEVER,
    action: str = "",
    prepare: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a stage without DVC; at the moment: `kill SIGNAL`, `unlink FILE` or `write FILE TEXT`.

    prepare: run in the child before the stage, to set limits.
    """
    command = [sys.executable, "-c", RUNNER, stage, moment.event, moment.part, str(moment.count), action]
    return subprocess.run(
        command, cwd=folder, env=environment, preexec_fn=prepare, capture_output=True, text=True, timeout=120
    )


def problems(
    folder: Path, stage: str, whole: dict[str, str], done: subprocess.CompletedProcess[str], status: int
) -> list[str]:
    """What is not as it must be after a fault: exit status, message, whole outputs, the outputs of other stages."""
    found = [] if done.returncode == status else [f"exit status {done.returncode}, expected {status}"]
    if status != -signal.SIGKILL and not told(stage, done.stderr):
        found.append(f"not one clear line: {done.stderr!r}")
    old = hashlib.sha256(OLD).hexdigest()
    now = snapshot(folder)
    for name in whole.keys() - {"dvc.lock"}:
        allowed = {whole[name]} | ({old} if name in outputs(stage) else set())
        if name == "metrics/curves.tsv" and stage == "train":  # grows line by line, to be watched
            lines = (folder / name).read_text().splitlines(keepends=True)
            if not all(line.endswith("\n") for line in lines):
                found.append(f"{name} ends within a line")
        elif now.get(name) not in allowed:
            found.append(f"{name} is {'partial or changed' if name in now else 'gone'}")
    return found


def told(stage: str, stderr: str) -> bool:
    """Whether one line at the end says why the stage ended, after nothing but its own lines of progress."""
    *before, last = stderr.strip().splitlines() or [""]
    progress = all(line.startswith(f"{stage}: ") for line in before)
    return progress and re.match(r"error: .|interrupted$|terminated$|train: stopped \(SIG", last) is not None


def leftovers(folder: Path) -> list[str]:
    """Temporary files that a process which could tidy up left behind."""
    return [str(path) for path in folder.rglob(".chargpt-*")]


def limit(kind: str, size: int) -> Callable[[], None]:
    """For `prepare`: a limit on the address space (AS) or the size of files (FSIZE), in bytes."""

    def set_limit() -> None:
        import resource

        resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (size, size))

    return set_limit


def environment_of(folder: Path) -> dict[str, str]:
    """For stages in a project below the folder: as for all tests, and a state saved at each step."""
    return conftest.environment_of(folder) | {"CHARGPT_SAVE_EVERY_S": "0"}
