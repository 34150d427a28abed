"""What dvc.yaml names as deps, and what trains again."""

from __future__ import annotations

import importlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

from chargpt.project.check import changed_stages
from chargpt.project.params_file import load_params
from chargpt.runtime.exits import ENDING
from stages.__main__ import run as run_stage
from tests.conftest import Run, undo
from tests.pipeline import ROOT, STAGES, Recorder
from tests.pipeline import outputs as outputs_of


@pytest.mark.parametrize("stage", STAGES)
def test_code_deps_cover_the_imports(stage: str) -> None:
    """Each dep is imported, and each import is below a dep. The __init__.py of chargpt and of stages import nothing."""
    graph = grimp.build_graph("chargpt", "stages", exclude_type_checking_imports=True, cache_dir=None)
    modules = graph.find_upstream_modules(f"stages.{stage}") | {f"stages.{stage}"}
    imported = {file for module in modules if (file := module_file(module))}
    deps = [ROOT / dep for dep in STAGES[stage]["deps"] if dep.startswith(("chargpt", "stages"))]
    assert all(any(file.is_relative_to(dep) for dep in deps) for file in imported)
    assert all(any(file.is_relative_to(dep) for file in imported) for dep in deps)
    assert STAGES[stage]["cmd"] == f"python -m stages {stage}"


def module_file(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else None


def test_the_root_packages_import_nothing() -> None:
    """Neither when they are imported, nor from the package below them that `chargpt.load` is from."""
    code = "import sys, chargpt, stages; sys.exit(len([n for n in sys.modules if n.startswith('chargpt.')]))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.fixture
def inside(repo: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """This process in the copied project, with its DVC directories."""
    monkeypatch.chdir(repo)
    for name in ("DVC_SITE_CACHE_DIR", "DVC_NO_ANALYTICS"):
        monkeypatch.setenv(name, environment[name])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDING)}
    yield repo
    for number, handler in handlers.items():  # the runner keeps its own until the process ends
        signal.signal(number, handler)


OUTSIDE = ["chargpt/project/check.py", "chargpt/cli/project.py", "README.md", "chargpt/params.py", "stages/__main__.py"]
RETRAINS = ["chargpt/training/loop.py", "chargpt/model/gpt.py", "chargpt/training/optimizers.py", "stages/train.py"]


def edit(path: Path) -> None:
    """Reword the first comment, or add one."""
    text = path.read_text(encoding="utf-8")
    path.write_text(text + ("\n<!-- more -->\n" if path.suffix == ".md" else "\n# more\n"), encoding="utf-8")


def test_only_training_code_retrains(inside: Path, run: Run) -> None:
    assert changed_stages() == []
    for name in OUTSIDE:
        edit(inside / name)
        assert changed_stages() == [], name
    reword(inside / "chargpt/runtime/exits.py", "not enough memory", "too little memory")
    reword(inside / "chargpt/cli/generate.py", "Number of characters to generate.", "How many characters to generate.")
    assert changed_stages() == []
    edit(inside / "chargpt/evaluation/report.html.j2")
    assert changed_stages() == ["evaluate"]
    for name in RETRAINS:
        text = (inside / name).read_text(encoding="utf-8")
        edit(inside / name)
        assert "train" in changed_stages(), name
        (inside / name).write_text(text, encoding="utf-8")
    run("git", "checkout", "-q", ".")
    assert changed_stages() == []


def reword(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_stages_read_the_params_they_declare_and_need_no_runner(inside: Path, run: Run) -> None:
    """Each through the runner, noting what is read; then directly, which gives the same bytes."""
    outputs = [inside / name for stage in STAGES for name in outputs_of(stage)]
    whole = {path: path.read_bytes() for path in outputs}
    for name, stage in STAGES.items():
        recorder = Recorder(load_params())
        run_stage(name, recorder)  # type: ignore[arg-type]
        templated = {dep[2:-1] for dep in stage["deps"] if dep.startswith("${")}
        if name == "sample":  # lists the whole file
            assert stage["params"] == [{"params.yaml": None}]
        else:
            assert recorder.read | templated == set(stage.get("params", [])), name
    through = {path: path.read_bytes() for path in outputs}
    for name in STAGES:
        for path in (inside / output for output in outputs_of(name)):
            path.unlink()
        importlib.import_module(f"stages.{name}").main(load_params())
    assert {path: path.read_bytes() for path in outputs} == through
    assert through.keys() == whole.keys()
    undo(run)  # this process has another number of threads, which may show in a last digit


def test_stages_that_do_not_load_torch(run: Run) -> None:
    """It takes seconds. `migrate` has nothing to migrate here."""
    program = "import sys\nfrom stages.__main__ import main\n"
    program += "for name in ('download', 'prepare', 'migrate', 'sample', 'export'): sys.argv[1:] = [name]; main()\n"
    run(sys.executable, "-c", program + "assert not {'torch', 'dvc', 'matplotlib'} & sys.modules.keys()")
    undo(run)


@pytest.mark.slow
@pytest.mark.system
def test_a_clone_without_tags_gives_the_same_page(repo: Path, run: Run, tmp_path: Path) -> None:
    """It depends on its inputs alone; `chargpt report` compares, in a file of its own."""
    page = (repo / "metrics/report.html").read_bytes()
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    figures = (repo / "metrics/evaluate.json").read_text()
    (repo / "metrics/evaluate.json").write_text(figures.replace('"val_loss": ', '"val_loss": 1'))
    run("git", *identity, "commit", "-q", "-a", "-m", "worse")
    run("git", *identity, "tag", "-a", "chargpt@v1.0.0", "-m", "worse")
    (repo / "metrics/evaluate.json").write_text(figures)
    run("git", *identity, "commit", "-q", "-a", "-m", "better")
    shutil.copytree(repo, tmp_path / "plain", symlinks=True)
    run("git", "tag", "-d", "chargpt@v1.0.0", cwd=tmp_path / "plain")
    for folder in (repo, tmp_path / "plain"):
        run(sys.executable, "-m", "stages", "evaluate", cwd=folder)
        assert (folder / "metrics/report.html").read_bytes() == page
    run("git", "tag", "-d", "chargpt@v1.0.0")
    run("git", "reset", "-q", "--hard", "HEAD~2")
