"""The fault matrix: every stage, every fault, brought about for real; what is left, and whether `dvc repro` mends it.

    sudo python benchmarks/faults.py [--stage STAGE] [--fault FAULT]

A toy model of Tiny Shakespeare in a project on a small file system of its own (root mounts it; `apt install faketime`
for the clock); once fetched, the text comes from its verified copy, without a network. After each fault: the status
is not 0, one line says why, each output of the stage is the old one or whole, the other stages' outputs are untouched;
then `dvc repro` runs the stage again and gives the bytes and the dvc.lock of the undisturbed run. A clock that jumps is
no fault: there the stage succeeds. Signals come while libraries load, before the first output is put in its place and
before the last is; in training also at the fifth saved state.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from chargpt.text.download import download
from tests import faults
from tests.faults import Moment

SIZE_MB = 64  # of the file system
MEMORY_MB = (100, 150, 250, 400, 600)  # limits of the address space; a toy model needs some 900
CORPUS, COPY = "data/input.txt", "../cache/tinyshakespeare.txt"
SIGNALS = {"SIGKILL": -9, "SIGTERM": 143, "Ctrl-C": 130}
NUMBERS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}


class Project:
    """The project, run once undisturbed, on a file system of its own."""

    def __init__(self, folder: Path) -> None:
        self.mount = folder / "disk"
        self.mount.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", self.mount], check=True)
        self.folder = self.mount / "project"
        self.folder.mkdir()
        cache = self.mount / "cache"
        download(cache)
        self.environment = faults.environment_of(folder) | {"CHARGPT_CACHE_DIR": str(cache)}
        sizes = {"corpus": CORPUS, "val_fraction": 0.01, "eval_interval": 20}
        legacy = json.loads((faults.ROOT / "data/legacy/config.json").read_text())
        sizes |= {"init": "migrated"}  # so that train reads all of its inputs
        sizes |= {name: legacy[name] for name in ("n_layer", "n_head", "n_embd", "block_size")}
        self.whole = faults.make_project(self.folder, self.environment, **sizes)

    def try_once(
        self, stage: str, status: int, moment: Moment = faults.NEVER, action: str = "", **options: Callable[[], None]
    ) -> tuple[list[str], str]:
        """One fault: what is not as it must be, and what the stage said. The outputs that were there are others'."""
        done = faults.run_stage(self.folder, stage, self.environment, moment, action, **options)
        return faults.problems(self.folder, stage, self.whole, done, status), done.stderr

    def mend(self, stage: str) -> list[str]:
        """What `dvc repro` does not mend."""
        try:
            said = faults.repro(self.folder, self.environment)
        except AssertionError as error:
            return [f"dvc repro failed: {error}"]
        wrong = [] if f"Running stage '{stage}'" in said else ["dvc repro did not run the stage again"]
        now = faults.snapshot(self.folder)
        wrong += [f"{name} has other bytes after dvc repro" for name in self.whole if now.get(name) != self.whole[name]]
        for left in faults.leftovers(self.folder):
            shutil.rmtree(left) if Path(left).is_dir() else Path(left).unlink(missing_ok=True)
        return wrong

    def close(self) -> None:
        subprocess.run(["umount", self.mount], check=True)


def signalled(project: Project, stage: str, fault: str) -> Iterator[list[str]]:
    """At each of the stage's moments."""
    for name, moment in faults.moments(stage).items():
        faults.set_back(project.folder, stage)
        wrong, _ = project.try_once(stage, SIGNALS[fault], moment, f"kill {int(NUMBERS[fault])}")
        if fault != "SIGKILL" and (left := faults.leftovers(project.folder)):
            wrong.append(f"left behind: {left}")
        if stage == "train" and name != "import" and not list(project.folder.glob(".dvc/tmp/chargpt/*/state.safe*")):
            wrong.append("no saved state")
        yield [f"{name}: {problem}" for problem in wrong + project.mend(stage)]


def full_disk(project: Project, stage: str, fault: str) -> Iterator[list[str]]:
    """Not one byte left; one page left, so that the first small file fits; as much as the outputs need less a page."""
    need = sum(len(faults.OLD) + (project.folder / name).stat().st_size for name in faults.outputs(stage))
    for pages in sorted({0, 1, max(0, need // 4096 - 1)}):
        faults.set_back(project.folder, stage)
        filler = project.mount / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        os.truncate(filler, filler.stat().st_size // 4096 * 4096 - pages * 4096)
        wrong, said = project.try_once(stage, 1)
        filler.unlink()
        if wrong and "exit status 0" in wrong[0] and pages:
            wrong = []  # there was room: no fault
        elif "no space left" not in said:
            wrong.append(f"does not speak of the disk: {said!r}")
        yield [f"{pages} pages left: {problem}" for problem in wrong + project.mend(stage)]


def read_only(project: Project, stage: str, fault: str) -> Iterator[list[str]]:
    """The whole project on a file system that is mounted for reading only."""
    faults.set_back(project.folder, stage)
    subprocess.run(["mount", "-o", "remount,ro", project.mount], check=True)
    wrong, said = project.try_once(stage, 1)
    subprocess.run(["mount", "-o", "remount,rw", project.mount], check=True)
    if "Read-only file system" not in said:
        wrong.append(f"does not speak of the file system: {said!r}")
    yield wrong + project.mend(stage)


def vanishing_input(project: Project, stage: str, fault: str) -> Iterator[list[str]]:
    """Each input before the stage starts, and the moment it is opened (the text: the second time)."""
    for name in ["params.yaml", *(faults.inputs(stage, CORPUS) if stage != "download" else [COPY])]:
        path, aside = project.folder / name, project.mount / "aside"
        opened = name + ("/weights/lm_head.bias.txt" if path.is_dir() else "")
        for moment in (None, Moment("open", Path(opened).name, 2 if name == CORPUS else 1)):
            faults.set_back(project.folder, stage)
            shutil.copytree(path, aside) if path.is_dir() else shutil.copyfile(path, aside)
            if moment is None:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                wrong, said = project.try_once(stage, 1)
            else:
                wrong, said = project.try_once(stage, 1, moment, f"unlink {opened}")
            if path.is_dir():
                shutil.rmtree(path)
            shutil.move(aside, path)
            wrong = [problem for problem in wrong if not problem.startswith(f"{name} is gone")]
            if Path(name).name not in said and not (name == COPY and "could not be downloaded" in said):
                wrong.append(f"does not name the file: {said!r}")
            yield [f"{name}{' when opened' if moment else ''}: {problem}" for problem in wrong + project.mend(stage)]


def little_memory(project: Project, stage: str, fault: str) -> Iterator[list[str]]:
    """Limits of the address space; at least one must be a fault."""
    failed = 0
    for megabytes in MEMORY_MB:
        faults.set_back(project.folder, stage)
        wrong, said = project.try_once(stage, 1, prepare=faults.limit("AS", megabytes << 20))
        if wrong and "exit status 0" in wrong[0]:
            wrong = []
        elif "OpenBLAS error" in said:  # which ends the process itself, before ours can say anything
            wrong = [problem for problem in wrong if "one clear line" not in problem]
            failed += 1
        else:
            failed += 1
            wrong += [] if "not enough memory" in said else [f"does not speak of memory: {said!r}"]
        yield [f"{megabytes} MB: {problem}" for problem in wrong + project.mend(stage)]
    yield [] if failed else ["no limit was a fault"]


def clock_back(project: Project, stage: str, fault: str) -> Iterator[list[str]]:
    """Ten days back from the start, and jumping there while libraries load; training saves and goes on all the time."""
    library = subprocess.run(["faketime", "-f", "+0", "printenv", "LD_PRELOAD"], capture_output=True, text=True).stdout
    now, moment = project.mount / "now", faults.moments(stage)["import"]
    for start, action in (("-10d", ""), ("+0d", f"write {now} -10d")):
        now.write_text(start)
        faults.set_back(project.folder, stage)
        usual = project.environment
        project.environment = usual | {
            "LD_PRELOAD": library.strip(),
            "FAKETIME_TIMESTAMP_FILE": str(now),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        done = faults.run_stage(project.folder, stage, project.environment, moment, action)
        project.environment = usual
        wrong = [] if done.returncode == 0 else [f"exit status {done.returncode}: {done.stderr}"]
        changed = faults.snapshot(project.folder)
        wrong += [f"{name} has other bytes" for name in faults.outputs(stage) if changed[name] != project.whole[name]]
        yield [f"{start} {action}: {problem}" for problem in wrong + project.mend(stage)]


FAULTS = {
    **dict.fromkeys(SIGNALS, signalled),
    "disk full": full_disk,
    "read-only": read_only,
    "input vanishing": vanishing_input,
    "out of memory": little_memory,
    "clock back": clock_back,
}


@contextmanager
def project() -> Iterator[Project]:
    with tempfile.TemporaryDirectory() as name:
        made = Project(Path(name))
        try:
            yield made
        finally:
            made.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Every stage, every fault.")
    parser.add_argument("--stage", choices=faults.STAGES)
    parser.add_argument("--fault", choices=FAULTS)
    arguments = parser.parse_args()
    chosen = {name: run for name, run in FAULTS.items() if arguments.fault in (None, name)}
    if not shutil.which("faketime"):
        print("no faketime here: the clock is left alone", file=sys.stderr)
        chosen.pop("clock back", None)
    print(f"| stage | {' | '.join(chosen)} |\n| --- |{' --- |' * len(chosen)}", flush=True)
    wrong = []
    with project() as made:
        for stage in [name for name in faults.STAGES if arguments.stage in (None, name)]:
            cells = []
            for fault, run in chosen.items():
                tries = list(run(made, stage, fault))
                failed = [problem for problems in tries for problem in problems]
                wrong += [f"{stage}, {fault}: {problem}" for problem in failed]
                cells.append(f"{len(tries)} {'ok' if not failed else 'tries, WRONG'}")
            print(f"| {stage} | {' | '.join(cells)} |", flush=True)
    if wrong:
        sys.exit("\n".join(["", *wrong]))


if __name__ == "__main__":
    main()
