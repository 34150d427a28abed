"""Hours of random use of a toy project by two people, with what must always be true checked after each step.

    sudo python benchmarks/soak.py --minutes 120 --seed 1

Two clones share a bare git repository and the default remote; they lie on a small file system of their own (root mounts
it, so that a disk can be full). Each step, one of them does something at random: edits parameters, runs the pipeline or
an experiment, in the workspace, a copy or the queue, kills it, fills the disk, changes times of files, damages or
removes outputs, commits, pushes, pulls, merges, applies, collects garbage. Afterwards:

- an output that exists is complete: model files verify, JSON and tables parse;
- if `dvc status` finds nothing changed, the model was trained with params.yaml, and every output has dvc.lock's md5;
- every finished experiment is still there, and its model in the cache, until it is removed;
- every model file in cache and remote verifies;
- the directory of saved states stays small, and no half-written file stays behind.

The same seed gives the same steps as far as the machine's speed allows: a kill comes after a time.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ruamel.yaml import YAML

from chargpt.errors import ChargptError
from chargpt.model.file import load_model, read_model
from chargpt.project.params_file import load_params
from chargpt.training.inputs import TRAINING_KEYS
from tests.conftest import IDENTITY, SIGNED, clone, environment_of, set_value

SIZE_MB = 400  # of the file system
MAX_STATES_MB = 20
MODEL = "artifacts/model.safetensors"
CHOICES: dict[str, list[Any]] = {
    "lr": [0.003, 0.01, 0.03],
    "seed": [1, 2],
    "n_layer": [1, 2],
    "max_iters": [10, 40, 400],
    "temperature": [0.5, 0.8],
    "val_fraction": [0.1, 0.2],
    "optimizer": ["muon", "adamw"],
}
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP]


class Finding(Exception):
    """Something that must always be true is not."""


class Person:
    """One of the two, with a clone."""

    def __init__(self, soak: Soak, name: str) -> None:
        self.soak, self.random = soak, soak.random
        self.folder = soak.mount / name
        self.experiments: dict[str, str] = {}  # name -> commit of the finished experiments that must be there

    def run(self, *command: str, seconds: float = 240, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a command to its end. A traceback is a finding, whatever else happened."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.soak.environment, capture_output=True, text=True, timeout=seconds
        )
        self.soak.log.write(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}[{done.returncode}]\n")
        if "Traceback" in done.stderr:
            raise Finding(f"a traceback from {' '.join(command)}: {done.stderr[-2000:]}")
        if check and done.returncode:
            raise Finding(f"{' '.join(command)} failed: {done.stdout[-1000:]}{done.stderr[-2000:]}")
        return done

    # what people do

    def edit(self) -> None:
        for key in self.random.sample(sorted(CHOICES), self.random.choice([1, 1, 2])):
            set_value(self.folder / "params.yaml", **{key: self.random.choice(CHOICES[key])})

    def reproduce(self) -> None:
        self.run("dvc", "repro", *self.random.choice([[], [], ["--pull"], ["-f", "train"]]), check=True)

    def kill(self) -> None:
        """Start a run and end it, or only DVC, by a signal after a moment; perhaps run again."""
        command = ["dvc", "repro"] if self.random.random() < 0.6 else ["dvc", "exp", "run"]
        process = subprocess.Popen(
            command, cwd=self.folder, env=self.soak.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self.random.uniform(0.2, 9))
        number, everybody = self.random.choice(SIGNALS), self.random.random() < 0.6
        self.soak.log.write(f"{number.name} to {'all' if everybody else 'DVC'} of {' '.join(command)}\n")
        self.soak.faults[number.name] += 1
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number) if everybody else process.send_signal(number)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        wait_for(process.pid)

    def fill_disk(self) -> None:
        filler = self.soak.mount / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        os.truncate(filler, max(0, filler.stat().st_size - self.random.choice([0, 1 << 16, 1 << 18, 1 << 20])))
        try:
            self.run("dvc", "repro")
        finally:
            filler.unlink()
        self.soak.faults["full disk"] += 1

    def experiment(self) -> None:
        before = self.listed()
        changes = [f"{key}={self.random.choice(CHOICES[key])}" for key in self.random.sample(sorted(CHOICES), 2)]
        where = self.random.choice([[], [], ["--temp"]])
        done = self.run("dvc", "exp", "run", *where, *(word for change in changes for word in ("-S", change)))
        if done.returncode == 0:
            self.remember(before, 1 if "Ran experiment(s): " in done.stdout else 0)

    def queue(self) -> None:
        before = self.listed()
        count = self.random.choice([1, 2, 3])
        for _ in range(count):
            self.run("dvc", "exp", "run", "--queue", "-S", f"lr={self.random.uniform(0.001, 0.05):.4f}")
        self.run("dvc", "queue", "start", "--jobs", self.random.choice(["1", "2"]))
        deadline = time.monotonic() + 150
        if self.random.random() < 0.3:
            time.sleep(self.random.uniform(1, 6))
            names = [line.split()[1] for line in self.tasks() if "Running" in line and len(line.split()) > 3]
            self.run("dvc", "queue", "kill", *[name for name in names if name != "Running"][:1], "-f")
            self.soak.faults["queue kill"] += 1
        while any(word in line for line in self.tasks() for word in ("Running", "Queued")):
            if time.monotonic() > deadline:
                self.run("dvc", "queue", "stop", "--kill")
                self.run("dvc", "queue", "remove", "--all")
                break
            time.sleep(1)
        self.remember(before, 0)
        self.run("dvc", "queue", "remove", "--success")
        self.run("dvc", "queue", "remove", "--failed")

    def tasks(self) -> list[str]:
        return self.run("dvc", "queue", "status").stdout.splitlines()[1:]

    def apply(self) -> None:
        if self.experiments:
            self.run("dvc", "exp", "apply", self.random.choice(sorted(self.experiments)))

    def back(self) -> None:
        """As the documents say."""
        for command in ("touch params.yaml", "git checkout params.yaml dvc.lock metrics", "dvc checkout --force"):
            self.run(*command.split())

    def commit(self) -> None:
        self.run("git", "add", "--all", check=True)
        self.run("git", "commit", "-q", "--allow-empty", "-m", "work", check=True)

    def push(self) -> None:
        self.run("dvc", "push", *self.random.choice([[], ["--run-cache"]]))
        self.run("git", "push", "-q", "origin", "HEAD:main")
        if self.experiments and self.random.random() < 0.5:
            self.run("dvc", "exp", "push", "--run-cache", "origin", self.random.choice(sorted(self.experiments)))

    def pull(self) -> None:
        self.commit()
        done = self.run("git", "pull", "-q", "--no-rebase", "--no-edit", "-X", "ours", "origin", "main")
        if done.returncode:
            self.run("git", "checkout", self.random.choice(["--ours", "--theirs"]), "--", ".")
            self.run("git", "add", "--all")
            self.run("git", "commit", "-q", "-m", "merge")
        load_params(self.folder / "params.yaml")
        self.run("dvc", "repro", "--pull", check=True)
        self.commit()

    def branch(self) -> None:
        self.commit()
        name = f"b{self.random.randrange(10**6)}"
        self.run("git", "switch", "-q", "-c", name, check=True)
        self.edit()
        self.run("dvc", "repro", check=True)
        self.commit()
        self.run("git", "switch", "-q", "main", check=True)
        self.edit()
        self.run("dvc", "repro", check=True)
        self.commit()
        if self.run("git", "merge", "-q", "--no-edit", name).returncode:
            self.run("git", "checkout", "--theirs", "--", ".", check=True)
            self.run("git", "add", "--all", check=True)
            self.run("git", "commit", "-q", "-m", "merge", check=True)
        self.run("dvc", "repro", "--pull", check=True)
        self.commit()

    def collect(self) -> None:
        self.run("dvc", "gc", "--workspace", "--all-commits", "--all-experiments", "--force", check=True)

    def clock(self) -> None:
        """Files from the future and from long ago, as after a change of the clock."""
        for path in self.random.sample(
            [p for p in self.folder.rglob("*") if ".git" not in p.parts and p.is_file()], 40
        ):
            when = time.time() + self.random.uniform(-40, 40) * 86400
            with contextlib.suppress(OSError):
                os.utime(path, (when, when))
        self.soak.faults["changed times"] += 1

    def damage(self) -> None:
        """Cut or remove an output in the workspace; DVC must notice."""
        outputs = [p for p in self.folder.glob("artifacts/**/*") if p.is_file()] + [*self.folder.glob("metrics/*.tsv")]
        if outputs:
            path = self.random.choice(sorted(outputs))
            content = path.read_bytes()
            path.unlink()
            if self.random.random() < 0.5:
                path.write_bytes(content[: len(content) // 2])
                self.soak.damaged.add(path)
            self.soak.faults["damaged output"] += 1

    def forget(self) -> None:
        """Remove what DVC and the pipeline keep for later."""
        self.run("rm", "-rf", self.random.choice([".dvc/tmp/chargpt", "artifacts", "data/tokens.safetensors"]))

    def remove(self) -> None:
        if self.experiments:
            name = self.random.choice(sorted(self.experiments))
            self.run("dvc", "exp", "remove", name, check=True)
            del self.experiments[name]

    def check(self) -> None:
        done = self.run("chargpt", "check")
        if done.returncode and not done.stderr.startswith(("problem: ", "error: ")):
            raise Finding(f"chargpt check said: {done.stderr}")

    def look(self) -> None:
        for command in (["dvc", "exp", "show", "--no-pager"], ["dvc", "metrics", "diff"], ["chargpt", "gate"]):
            self.run(*command)

    # what is remembered

    def listed(self) -> dict[str, str]:
        """Name -> commit of the experiments that git has."""
        lines = self.run("git", "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps").stdout.splitlines()
        found = [line.split() for line in lines]
        return {ref.rsplit("/", 1)[1]: commit for ref, commit in found if "/exec/" not in ref and ref.count("/") == 4}

    def remember(self, before: dict[str, str], at_least: int) -> None:
        new = {name: commit for name, commit in self.listed().items() if name not in before}
        if len(new) < at_least:
            raise Finding("DVC said that it ran an experiment, and none is there")
        self.experiments |= new

    # what must be true

    def verify(self) -> None:
        self.outputs_are_complete()
        self.status_is_true()
        listed = self.listed()
        for name, commit in self.experiments.items():
            if listed.get(name) != commit:
                raise Finding(f"experiment {name} ({commit[:8]}) is lost: {listed.get(name)}")
            lock = self.run("git", "show", f"{commit}:dvc.lock").stdout
            md5 = next(
                out["md5"] for out in YAML(typ="safe").load(lock)["stages"]["train"]["outs"] if out["path"] == MODEL
            )
            if not self.object_of(md5).exists():
                raise Finding(f"the cache lacks the model of experiment {name}")
        states = self.folder / ".dvc/tmp/chargpt"
        size = sum(p.stat().st_size for p in states.rglob("*") if p.is_file()) if states.exists() else 0
        if size > MAX_STATES_MB << 20:
            raise Finding(f"{states} holds {size >> 20} MB")

    def object_of(self, md5: str) -> Path:
        return self.folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]

    def outputs_are_complete(self) -> None:
        for path in [*self.folder.glob("artifacts/*"), *self.folder.glob("metrics/*")]:
            if path in self.soak.damaged or path.is_dir() or not path.stat().st_size:
                continue
            try:
                if path.suffix == ".safetensors":
                    load_model(path)
                elif path.suffix == ".json":
                    json.loads(path.read_text())
                elif path.suffix == ".tsv" and path.name != "curves.tsv":  # the curve grows while training runs
                    rows = list(csv.reader(path.open(newline=""), delimiter="\t"))
                    assert len({len(row) for row in rows}) == 1
            except (ChargptError, ValueError, AssertionError) as error:
                raise Finding(f"{path} is not complete: {error}") from error

    def status_is_true(self) -> None:
        said = self.run("dvc", "status", "--json")
        if said.returncode or json.loads(said.stdout or "{}"):
            return
        params, model = load_params(self.folder / "params.yaml"), self.folder / MODEL
        trained = read_model(model).params
        wrong = {key for key in TRAINING_KEYS if trained[key] != getattr(params, key)}
        if wrong:
            raise Finding(f"dvc status finds nothing, but the model was trained with other {wrong}")
        for name, stage in YAML(typ="safe").load((self.folder / "dvc.lock").read_text())["stages"].items():
            for out in stage["outs"]:
                path = self.folder / out["path"]
                if path.is_file() and hashlib.md5(path.read_bytes()).hexdigest() != out["md5"]:
                    raise Finding(f"dvc status finds nothing, but {path} of {name} is not what dvc.lock records")
        self.soak.damaged = {p for p in self.soak.damaged if not p.is_relative_to(self.folder)}


class Soak:
    """The two, what they share, and the count of what happened."""

    def __init__(self, folder: Path, seed: int, log: Path) -> None:
        self.random = random.Random(seed)
        self.log = log.open("w", buffering=1)
        self.steps: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.damaged: set[Path] = set()
        self.mount = folder / "disk"
        self.mount.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", self.mount], check=True)
        self.environment = environment_of(self.mount) | SIGNED | {"CHARGPT_SAVE_EVERY_S": "0.2"}
        mine = Person(self, "mine")
        clone(mine.folder)
        for command in (
            ["git", "init", "-q", "-b", "main"],
            ["git", *IDENTITY, "add", "--all"],
            ["git", *IDENTITY, "commit", "-q", "-m", "start"],
            ["dvc", "repro"],
            ["git", "add", "--all"],
            ["git", "commit", "-q", "-m", "repro"],
            ["git", "clone", "-q", "--bare", ".", "../bare.git"],
            ["git", "remote", "add", "origin", "../bare.git"],
            ["dvc", "push", "--run-cache"],
            ["git", "clone", "-q", "../bare.git", "../theirs"],
        ):
            mine.run(*command, check=True)
        self.people = [mine, Person(self, "theirs")]

    def step(self) -> str:
        """Do something at random, and check; returns what was done."""
        person = self.random.choice(self.people)
        actions: dict[Callable[[], None], int] = {
            person.edit: 5, person.reproduce: 5, person.kill: 6, person.fill_disk: 2, person.experiment: 4,
            person.queue: 3, person.apply: 2, person.back: 3, person.commit: 4, person.push: 3, person.pull: 2,
            person.branch: 2, person.collect: 1, person.clock: 2, person.damage: 2, person.forget: 1, person.remove: 2,
            person.check: 2, person.look: 1,
        }  # fmt: skip
        action = self.random.choices(list(actions), list(actions.values()))[0]
        name = f"{person.folder.name} {action.__name__}"
        self.log.write(f"\n=== {sum(self.steps.values())} {name}\n")
        self.steps[action.__name__] += 1
        action()
        for somebody in self.people:
            somebody.verify()
        for store in self.mount.glob(".local/share/chargpt/store/files/md5/*/*"):
            if not store.suffix and hashlib.md5(store.read_bytes()).hexdigest() != store.parent.name + store.name:
                raise Finding(f"{store} is damaged")
        return name

    def close(self) -> None:
        subprocess.run(["umount", "-l", self.mount], check=True)


def wait_for(session: int) -> None:
    """Wait until every process of a session is gone: a training saves before it ends."""
    import psutil

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        alive = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process)
        if not alive:
            return
        time.sleep(0.1)
    raise Finding("a process of a killed run is still there after a minute")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, default=Path("soak.log"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), given.seed, given.log)
        ends = time.monotonic() + 60 * given.minutes
        try:
            while time.monotonic() < ends:
                soak.step()
        except Finding as finding:
            print(f"FINDING after step {sum(soak.steps.values())}: {finding}; see {given.log}")
            sys.exit(1)
        finally:
            print(f"{sum(soak.steps.values())} steps: {dict(soak.steps.most_common())}")
            print(f"faults: {dict(soak.faults.most_common())}")
            soak.close()


if __name__ == "__main__":
    main()
