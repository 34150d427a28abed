"""The saved state of a run, what determines it, and who shares the processor."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from chargpt.app.machine import runs_here, seconds_between_saves, state_root
from chargpt.device import share_cores
from chargpt.errors import ChargptError
from chargpt.training.inputs import check_unchanged, code_files, read_inputs
from chargpt.training.state import State
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
        "from chargpt.training.state import State\n"
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
    assert "state not saved (No space left on device); the one before it is kept" in done.stdout


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


def test_states_that_nobody_came_back_to_are_removed(tmp_path: Path) -> None:
    for name, days in (("old", 15), ("recent", 13)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.safetensors").touch()
        os.utime(tmp_path / name, (time.time() - days * 86400,) * 2)
    state = State(tmp_path, {"lr": "1"})
    with state.locked():
        assert {p.name for p in tmp_path.iterdir()} == {"recent", state.folder.name}
    state.clear()
    assert [p.name for p in tmp_path.iterdir()] == ["recent"]


def test_a_fresh_start_ignores_what_is_saved(tmp_path: Path) -> None:
    state = State(tmp_path, {})
    state.save({"x": torch.zeros(3)}, {"step": 1})
    assert state.load() is not None
    assert State(tmp_path, {}, fresh=True).load() is None
    assert state.load() is None, "it is gone"


def test_saves_become_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("chargpt.training.state.time.monotonic", lambda: now)
    state = State(tmp_path, {}, save_every_s=10)
    now += 9.9
    assert not state.due()
    now += 0.1
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
    before = read_inputs({"lr": 0.1, "seed": 1}, {"data/x": file})
    file.write_text("b")
    after = read_inputs({"lr": 0.2, "seed": 1}, {"data/x": file})
    with pytest.raises(
        ChargptError, match=r"^changed while training ran: data/x, parameter lr; dvc\.lock would describe"
    ):
        check_unchanged(before, after)
    check_unchanged(after, after)
    file.unlink()
    with pytest.raises(ChargptError, match="data/x: no such file; run `dvc repro` to make it"):
        read_inputs({}, {"data/x": file})


def test_the_code_of_a_stage_is_found_by_its_imports(tmp_path: Path) -> None:
    """At any depth, with the packages around it, and without what only type checkers import."""
    for name, text in {
        "stages/__init__.py": "",
        "stages/a.py": "from chargpt.b import c\nimport os, chargpt.d.e\n",
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


def test_a_run_takes_its_part_of_the_threads() -> None:
    said: list[str] = []
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(6)
        share_cores(1, said.append)
        assert (torch.get_num_threads(), said) == (6, [])
        share_cores(4, said.append)
        assert (torch.get_num_threads(), said) == (1, ["4 runs share this machine: computing with 1 of 6 threads"])
    finally:
        torch.set_num_threads(threads)
