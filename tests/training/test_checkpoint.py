"""The saved state of a run, what determines it, and who shares the processor."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from chargpt.device import share_cores
from chargpt.errors import ChargptError
from chargpt.params import Params
from chargpt.project.params_file import load_params
from chargpt.runtime.machine import runs_among, runs_here, seconds_between_saves, state_root
from chargpt.training.checkpoint import State
from chargpt.training.inputs import check_unchanged, code_files, environment_inputs, read_inputs, training_values
from chargpt.training.monitor import Place
from chargpt.training.processes import World
from tests.conftest import write_params
from tests.pipeline import ROOT


@pytest.mark.system
def test_a_full_disk_keeps_the_last_good_state(tmp_path: Path) -> None:
    """A tmpfs too small for a second copy of the state."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("CANNOT MOUNT A SMALL FILE SYSTEM HERE, the full disk was not tested")
    code = (
        "import torch\n"
        "import sys; from pathlib import Path\n"
        "from chargpt.training.checkpoint import State\n"
        "state = State(Path(sys.argv[1]), {'a': '1'}, say=print)\n"
        "with state.locked():\n"
        "    state.save({'x': torch.ones(40_000)}, {'step': 1})\n"
        "    state.save({'x': torch.zeros(40_000)}, {'step': 2})\n"
        "    tensors, facts = state.load()\n"
        "    assert facts == {'step': 1} and tensors['x'].sum() == 40_000\n"
        "    assert len(list(state.folder.iterdir())) == 2\n"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert done.returncode == 0, done.stderr
    assert "state not saved (No space left on device); the previous state is kept" in done.stdout


def test_the_state_of_another_run_is_ignored(tmp_path: Path) -> None:
    said: list[str] = []
    one, other = (State(tmp_path / "states", {"lr": value}, say=said.append) for value in ("1", "2"))
    (tmp_path / "states").mkdir()
    (tmp_path / "states/gone").symlink_to("nowhere")
    with one.locked(), other.locked():
        one.save({"x": torch.zeros(3)}, {"step": 1})
        loaded = one.load()
        assert loaded and loaded[1] == {"step": 1}
        shutil.copyfile(one.path, other.path)
        assert other.load() is None
    assert said == [f"{other.path} is damaged; ignored, training starts again"]


def test_a_state_is_what_was_saved(tmp_path: Path) -> None:
    """Tensors of any kind, in another process too; the next save replaces it."""
    state = State(tmp_path, {"lr": "1"})
    assert state.load() is None
    weights = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    tensors = {"turned": weights.mT, "none": torch.zeros(0), "count": torch.tensor(7)}
    for step in (1, 2):
        assert state.save(tensors, {"step": step, "rows": [[1, 0.5]], "best": float("inf")}) is True
        loaded = State(tmp_path, {"lr": "1"}).load()
        assert loaded
        assert loaded[1] == {"step": step, "rows": [[1, 0.5]], "best": float("inf")}
        assert loaded[0].keys() == tensors.keys()
        assert all(torch.equal(loaded[0][name], t) for name, t in tensors.items())
    loaded[0]["turned"] += 1  # it is not the file's memory
    again = state.load()
    assert again and torch.equal(again[0]["turned"], weights.mT)


def test_what_determines_the_result_names_the_state(tmp_path: Path) -> None:
    folder = State(tmp_path, {"a": "1", "b": "2"}).folder
    assert folder == State(tmp_path, {"b": "2", "a": "1"}).folder, "in any order"
    assert re.fullmatch("[0-9a-f]{16}", folder.name) and folder.parent == tmp_path
    others = ({"a": "1", "b": "3"}, {"a": "1"}, {"a": "1", "c": "2"}, {"a": "1", "b": "2", "c": "3"}, {})
    assert len({folder, *(State(tmp_path, inputs).folder for inputs in others)}) == 6


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "facts", "no key"])
def test_a_damaged_state_is_reported_and_ignored(tmp_path: Path, damage: str) -> None:
    said: list[str] = []
    state = State(tmp_path, {}, say=said.append)
    state.save({"x": torch.zeros(100)}, {"step": 1})
    content = bytearray(state.path.read_bytes())
    content[-1] ^= damage == "bit"
    content = content.replace(b"step", b"stop") if damage == "facts" else content
    content = content.replace(b"chargpt_state", b"chargpt_stale") if damage == "no key" else content
    state.path.write_bytes(content[: {"cut": 50, "empty": 0}.get(damage)])
    assert state.load() is None
    assert len(said) == 1 and said[0].startswith(f"{state.path} is damaged; ignored")


def test_a_state_that_cannot_be_written_costs_no_more_than_itself(tmp_path: Path, monkeypatch: Any) -> None:
    said: list[str] = []
    state = State(tmp_path, {}, say=said.append)
    state.save({"x": torch.zeros(3)}, {"step": 1})
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert state.save({"x": torch.ones(3)}, {"step": 2}) is False
    assert len(said) == 1 and said[0].startswith("state not saved (No space left on device); ")
    loaded = state.load()
    assert loaded and loaded[1] == {"step": 1}
    assert not state.due()


def test_states_that_nobody_came_back_to_are_removed(tmp_path: Path) -> None:
    """After two weeks; what a save left behind that was killed goes at once; the run's own state stays, however old."""
    state = State(tmp_path, {"lr": "1"})
    for name, days in (("old", 14.01), ("recent", 13.99), (state.folder.name, 99)):
        (tmp_path / name).mkdir()
        for file in ("state.safetensors", "lock", ".chargpt-1.tmp"):
            (tmp_path / name / file).touch()
        os.utime(tmp_path / name, (time.time() - days * 86400,) * 2)
    (tmp_path / "file").touch()
    os.utime(tmp_path / "file", (0, 0))
    with state.locked() as held:
        assert held is state
        assert {p.name for p in tmp_path.iterdir()} == {"recent", state.folder.name}
        assert {p.name for p in state.folder.iterdir()} == {"state.safetensors", "lock"}
    state.clear()
    assert {p.name for p in tmp_path.iterdir()} == {"recent"}
    state.clear()


def test_a_state_of_other_code_is_told_of(tmp_path: Path) -> None:
    """It would give another result; a state of other parameters is none of this run's business."""
    said: list[str] = []
    inputs = {"parameter lr": "1", "torch": "2.13", "chargpt/model.py": "a", "data/tokens.safetensors": "b"}
    for changes in ({"chargpt/model.py": "c"}, {"parameter lr": "2"}, {"data/tokens.safetensors": "c"}):
        State(tmp_path, inputs | changes).save({"x": torch.zeros(3)}, {"step": 7})
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/state.safetensors").write_bytes(b"odd")
    assert State(tmp_path, inputs, say=said.append).load() is None
    assert said == [
        "a state saved at step 7 is not used, because chargpt/model.py changed; undo that to go on there",
    ]
    assert State(tmp_path, inputs, say=said.append, fresh=True).load() is None
    assert len(said) == 1


def test_the_states_used_last_are_kept_and_those_that_train_now(tmp_path: Path) -> None:
    states = [State(tmp_path, {"seed": str(seed)}) for seed in range(25)]
    for age, state in enumerate(states):
        state.save({"x": torch.zeros(3)}, {})
        os.utime(state.folder, (time.time() - age * 60,) * 2)
    with states[24].locked(), State(tmp_path, {"seed": "new"}).locked() as new:
        os.utime(states[24].folder, (time.time() - 7200,) * 2)
        State(tmp_path, {"seed": "new"})._tidy_up()
        kept = {new.folder, *(state.folder for state in states[:18]), states[24].folder}
        assert set(tmp_path.iterdir()) == kept


class Clock:
    """A clock that goes on when somebody sleeps, and calls back then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.slept: list[Callable[[], object]] = []
        monkeypatch.setattr("chargpt.training.checkpoint.time.monotonic", lambda: self.now)
        monkeypatch.setattr("chargpt.training.checkpoint.time.sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 1
        self.now += seconds
        if self.slept:
            self.slept.pop(0)()


def test_a_second_process_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which ends, and then saves or removes what it saved."""
    clock, said = Clock(monkeypatch), list[str]()
    first, second = (State(tmp_path, {}, say=said.append) for _ in range(2))
    for finished in (False, True):
        lock = first.locked()
        lock.__enter__()
        first.save({"x": torch.zeros(1)}, {})
        assert not said
        end = lock.__exit__
        clock.slept = [lambda: None, lambda end=end, done=finished: (first.clear() if done else None, end(*[None] * 3))]
        with second.locked():
            assert (second.load() is None) == finished
            assert said == ["waiting for another process with the same run to end"], "once"
            assert (second.folder / "lock").read_text().strip() == str(os.getpid()), "who holds it"
        said.clear()
        assert not clock.slept
    with first.locked():
        assert not said, "it is free again"


def test_a_second_process_gives_up_after_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    message = "another process trains with the same parameters and data; wait for it or stop it"
    with State(tmp_path, {}).locked() as held, pytest.raises(ChargptError, match=message), State(tmp_path, {}).locked():
        pass
    assert 1060 <= clock.now < 1060.5
    with State(tmp_path, {}).locked():
        assert held.folder.exists()


def test_the_lock_is_given_back_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    with pytest.raises(KeyError), State(tmp_path, {}).locked():
        raise KeyError
    with State(tmp_path, {}).locked():
        pass


def test_a_fresh_start_ignores_what_is_saved(tmp_path: Path) -> None:
    state = State(tmp_path, {})
    state.save({"x": torch.zeros(3)}, {"step": 1})
    assert state.load() is not None
    assert State(tmp_path, {}, fresh=True).load() is None
    assert state.load() is None, "it is gone"


def test_saves_become_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted from the end of the last save, which may be slow; every 15 seconds unless told otherwise."""
    clock = Clock(monkeypatch)
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (clock.sleep(1), sync(fd)))
    for options, seconds in (({"save_every_s": 10}, 10), ({}, 15)):
        state = State(tmp_path, {}, **options)
        for _ in range(2):
            clock.now += seconds - 0.125
            assert not state.due()
            clock.now += 0.125
            assert state.due()
            state.save({"x": torch.zeros(1)}, {})
            assert not state.due()


@pytest.mark.parametrize(("value", "seconds"), [("0", 0.0), ("2.5", 2.5), ("", 15.0), (None, 15.0)])
def test_seconds_between_saves(monkeypatch: pytest.MonkeyPatch, value: str | None, seconds: float) -> None:
    monkeypatch.delenv("CHARGPT_SAVE_EVERY_S", raising=False)
    if value is not None:
        monkeypatch.setenv("CHARGPT_SAVE_EVERY_S", value)
    assert seconds_between_saves() == seconds


@pytest.mark.parametrize("value", ["often", "-1", "nan", "1,5"])
def test_seconds_between_saves_must_be_a_number(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CHARGPT_SAVE_EVERY_S", value)
    with pytest.raises(ChargptError) as error:
        seconds_between_saves()
    assert str(error.value) == f"CHARGPT_SAVE_EVERY_S is '{value}'; it must be a number of seconds, at least 0"


def test_states_of_a_copy_lie_in_the_main_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", "/somewhere")
    assert state_root() == Path("/somewhere/.dvc/tmp/chargpt")
    monkeypatch.delenv("DVC_ROOT")
    assert state_root() == Path(".dvc/tmp/chargpt")


def test_inputs_name_what_changed(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_text("a")
    before = read_inputs({"seed": 1, "lr": 0.1}, {"data/x": file})
    sha256 = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    assert list(before.items()) == [("parameter lr", "0.1"), ("parameter seed", "1"), ("data/x", sha256)]
    file.write_text("b")
    after = read_inputs({"lr": 0.2, "seed": 1}, {"data/x": file})
    with pytest.raises(
        ChargptError, match=r"^changed while training ran: data/x, parameter lr; dvc\.lock would describe"
    ):
        check_unchanged(before, after)
    check_unchanged(after, after)
    for fewer, more in (({}, {"a": "1"}), ({"a": "1"}, {})):
        with pytest.raises(ChargptError, match=r"^changed while training ran: a; .*run again"):
            check_unchanged(fewer, more)
    file.unlink()
    with pytest.raises(ChargptError, match="data/x: no such file; run `dvc repro` to make it"):
        read_inputs({}, {"data/x": file})


def test_what_shapes_the_weights_is_what_the_train_stage_reads(toy_params: Params) -> None:
    """But for how the processes are started, which dvc.yaml lists so that a change of it runs the stage."""
    stage = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["train"]
    values = training_values(toy_params)
    assert values.keys() == set(stage["params"]) - {"launch"}
    assert values == {key: getattr(toy_params, key) for key in values}


def test_the_environment_that_shows_in_the_last_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = load_params(write_params(tmp_path / "params.yaml", dtype="bfloat16"))
    alone, two = World(torch.device("cpu")), World(torch.device("cpu"), Place(1, 2))
    expected = {"torch": torch.__version__, "processes": 1, "computed on": "cpu in torch.bfloat16"}
    assert environment_inputs(params, alone) == expected
    assert environment_inputs(params, two) == expected | {"processes": 2}


def test_the_code_of_a_stage_is_found_by_its_imports(tmp_path: Path) -> None:
    """At any depth, with the packages around it, and without what only type checkers import."""
    for name, text in {
        "__init__.py": "",  # the root is no package
        "stages/__init__.py": "",
        "stages/a.py": "from chargpt.b import c\nimport os, chargpt.d.e\nfrom . import b\nfrom other import chargpt\n",
        "chargpt/__init__.py": "",
        "chargpt/b.py": "if TYPE_CHECKING:\n  import chargpt.f\nelse:\n  import chargpt.k\ndef g(): import chargpt.h",
        "chargpt/d/__init__.py": "",
        "chargpt/d/e.py": "from chargpt.d import i\nfrom chargpt.b import g\n",
        "chargpt/d/i.py": "",
        "chargpt/f.py": "",
        "chargpt/h.py": "",
        "chargpt/k.py": "",
        "chargpt/unused.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    modules = ("__init__", "b", "d/__init__", "d/e", "d/i", "h", "k")
    expected = [*(f"chargpt/{module}.py" for module in modules), "stages/__init__.py", "stages/a.py"]
    assert list(code_files(tmp_path / "stages/a.py")) == expected


def test_the_code_of_the_train_stage_is_what_python_loads() -> None:
    code = (
        "import sys, pathlib, stages.train\n"
        "files = {getattr(m, '__file__', None) for m in sys.modules.values()} - {None}\n"
        "root = pathlib.Path.cwd()\n"
        "print(*sorted(pathlib.Path(f).relative_to(root).as_posix() for f in files"
        " if pathlib.Path(f).is_relative_to(root / 'chargpt') or pathlib.Path(f).is_relative_to(root / 'stages')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(code_files(ROOT / "stages/train.py"))


def test_trainings_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside one other training, and two workers of DVC's queue, a run takes its part; told a number, it obeys."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = runs_here()
    waiting = [sys.executable, "-c", "import time; time.sleep(60)"]
    words = (["stages", "train"], ["stages", "train"], ["queue-worker"], ["queue-worker"], ["queue-worker"])
    others = [subprocess.Popen([*waiting, *more]) for more in words]
    try:
        assert runs_here() >= max(before, 3)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert runs_here() == 1
    finally:
        for other in others:
            other.kill()
            other.wait()


@pytest.mark.parametrize(
    ("commands", "runs"),
    [
        ([], 1),
        ([["python", "-m", "stages", "train"]], 1),
        ([["/v/bin/python3.11", "-u", "-m", "stages", "train"], [], ["python", "-m", "stages", "train"]], 2),
        ([["timeout", "75", "python", "-m", "stages", "train"], ["python", "-m", "stages", "train"]], 1),
        ([["python", "-m", "stages", "sample"], ["python", "train", "stages"], ["vim", "stages", "train"]], 1),
        (
            [["python", "-m", "stages", "train"], *[["python", "-m", "dvc", "queue-worker", str(i)] for i in range(3)]],
            3,
        ),
    ],
)
def test_which_processes_are_trainings(commands: list[list[str]], runs: int) -> None:
    assert runs_among(commands) == runs


def test_a_run_takes_its_part_of_the_threads() -> None:
    said: list[str] = []
    threads = torch.get_num_threads()
    try:
        for runs, share in ((1, 6), (2, 3), (3, 1), (5, 1)):  # of what it has then
            before = torch.get_num_threads() if runs > 1 else 6
            torch.set_num_threads(before)
            share_cores(runs, said.append)
            assert torch.get_num_threads() == share
            line = f"{runs} runs share this machine: computing with {share} of {before} threads"
            assert said == ([line] if share < before else [])
            said.clear()
    finally:
        torch.set_num_threads(threads)
