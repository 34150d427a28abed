"""The house: which ring may import which, what dvc.yaml names, and what makes a model again."""

from __future__ import annotations

import ast
import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chargpt.app.check import changed_stages
from chargpt.app.params_file import load_params
from chargpt.training.inputs import code_files
from stages.__main__ import run as run_stage
from tests.conftest import Run, undo
from tests.faults import STAGES
from tests.faults import outputs as outputs_of
from tests.pipeline import ROOT, Recorder

SUBPACKAGES = ("training", "legacy", "export", "report")
INNER = {"core": {"core"}, **{name: {"core", name} for name in SUBPACKAGES}}
MAY_IMPORT = INNER | {
    "stages": {"core", *SUBPACKAGES, "stages"},
    "app": {"core", *SUBPACKAGES, "app"},
    "runner": {"core", *SUBPACKAGES, "stages", "app"},
    "command": {"app"},
}


def ring(module: str) -> str:
    """The ring in which a module of the project lies."""
    known = {"chargpt.__main__": "command", "stages.__main__": "runner"}
    top, *rest = module.split(".")
    inside = rest[0] if rest and rest[0] in (*SUBPACKAGES, "app") else "core"
    return known.get(module) or ("stages" if top == "stages" else inside)


def modules() -> dict[str, Path]:
    files = [*ROOT.glob("chargpt/**/*.py"), *ROOT.glob("stages/**/*.py")]
    names = {path: path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in files}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports anywhere, for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield str(node.module)
            yield from (name for alias in node.names if (name := f"{node.module}.{alias.name}") in modules())


@pytest.mark.parametrize("module", sorted(modules()))
def test_arrows_point_inwards_only(module: str) -> None:
    names = set(imports(modules()[module]))
    own = {name for name in names if name.split(".")[0] in ("chargpt", "stages")}
    assert not {name for name in own - {"chargpt"} if ring(name) not in MAY_IMPORT[ring(module)]}
    if ring(module) not in ("app", "runner"):  # there is no other way to import
        assert "importlib" not in names and "__import__" not in modules()[module].read_text(encoding="utf-8")


def test_nobody_imports_a_whole_package() -> None:
    """`import chargpt` would give every ring by attribute."""
    for path in modules().values():
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        plain = {alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names}
        assert not {name for name in plain if name.split(".")[0] in ("chargpt", "stages")}, path


@pytest.mark.parametrize("module", sorted(name for name in modules() if ring(name) in INNER))
def test_the_inner_rings_know_no_people_and_no_tools(module: str) -> None:
    """No DVC, git, terminal, signal, exit code or environment variable."""
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    outside = {"dvc", "gto", "typer", "rich", "tqdm", "signal", "argparse", "psutil", "platformdirs"}
    assert not {name.split(".")[0] for name in imports(modules()[module])} & outside
    nodes = list(ast.walk(tree))
    used = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute | ast.Name)}
    used |= {f"{n.module}.{a.name}" for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names}
    renamed = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names if a.asname}
    assert not renamed & {"os", "sys", "builtins"}
    assert not used & {f"os.{name}" for name in ("environ", "environb", "getenv", "_exit", "kill", "system")}
    assert not used & {f"sys.{name}" for name in ("exit", "argv", "stdin", "stdout", "stderr")}
    assert not used & {"print", "input", "exit", "quit", "SystemExit", "KeyboardInterrupt"}


@pytest.mark.parametrize("stage", STAGES)
def test_code_deps_are_the_real_imports(stage: str) -> None:
    """A directory stands for all of its modules."""
    deps = [ROOT / dep for dep in STAGES[stage]["deps"] if dep.startswith(("chargpt", "stages"))]
    declared = [file for dep in deps for file in (dep.rglob("*.py") if dep.is_dir() else [dep])]
    assert sorted(file.relative_to(ROOT).as_posix() for file in declared) == list(
        code_files(ROOT / f"stages/{stage}.py")
    )
    assert STAGES[stage]["cmd"] == f"python -m stages {stage}"


def test_the_graph_reads_as_prose() -> None:
    assert len((ROOT / "dvc.yaml").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_runner_only_runs() -> None:
    """It touches no tensors and imports neither torch nor numpy, also not through what it imports."""
    assert not {name.split(".")[0] for name in imports(ROOT / "stages/__main__.py")} & {"torch", "numpy"}
    code = (
        "import sys, stages.__main__, chargpt.app.machine, chargpt.app.progress, chargpt.app.launch;"
        "import chargpt.app.params_file as p, chargpt.app.git as g; p.load_params(); g.refuse_untracked_code();"
        "sys.exit(bool({'torch', 'numpy'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.fixture
def inside(repo: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process in the copied project, with its DVC directories."""
    monkeypatch.chdir(repo)
    for name in ("DVC_SITE_CACHE_DIR", "DVC_NO_ANALYTICS"):
        monkeypatch.setenv(name, environment[name])
    return repo


OUTSIDE = ["chargpt/app/check.py", "chargpt/app/cli.py", "README.md", "chargpt/params.py", "stages/__main__.py"]
RETRAINS = ["chargpt/training/loop.py", "chargpt/model.py", "chargpt/training/optimizers.py", "stages/train.py"]


def edit(path: Path) -> None:
    """Reword the first comment, or add one."""
    text = path.read_text(encoding="utf-8")
    path.write_text(text + ("\n<!-- more -->\n" if path.suffix == ".md" else "\n# more\n"), encoding="utf-8")


def test_only_training_code_retrains(inside: Path, run: Run) -> None:
    assert changed_stages() == []
    for name in OUTSIDE:
        edit(inside / name)
        assert changed_stages() == [], name
    reword(inside / "chargpt/app/one_line.py", "not enough memory", "too little memory")
    reword(inside / "chargpt/app/cli.py", "Number of characters to generate.", "How many characters to generate.")
    assert changed_stages() == []
    edit(inside / "chargpt/report/report.html.j2")
    assert changed_stages() == ["evaluate"]
    undo(run)
    for name in RETRAINS:
        edit(inside / name)
        assert "train" in changed_stages(), name
        undo(run)
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


@pytest.mark.parametrize("name", ["download", "prepare", "migrate", "sample", "export"])
def test_stages_that_do_not_load_torch(name: str, run: Run) -> None:
    """It takes seconds. `migrate` has nothing to migrate here."""
    program = f"import sys; sys.argv[1:] = ['{name}']\ntry: from stages.__main__ import main; main()\n"
    run(sys.executable, "-c", program + "finally: assert not {'torch', 'dvc', 'matplotlib'} & sys.modules.keys()")
    undo(run)


def test_a_clone_without_tags_gives_the_same_page(repo: Path, run: Run, tmp_path: Path) -> None:
    """The page of the pipeline depends on its inputs alone; `chargpt report` compares, in a file of its own."""
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
    assert run("chargpt", "report").stdout == "wrote report.html; compared with chargpt@v1.0.0\n"
    assert b"chargpt@v1.0.0" in (repo / "report.html").read_bytes()
    assert run("git", "status", "--porcelain").stdout == ""
    done = run("chargpt", "report", "--output", "other.html", cwd=tmp_path / "plain")
    assert done.stdout == "wrote other.html; no earlier version to compare with\n"
    for arguments, message in {
        ("--output", "metrics/report.html"): "is the project's metrics/report.html and would replace it; give another",
        ("--output", "params.yaml"): "is the project's params.yaml and would replace it; give another path",
        ("--against", "nope"): "unknown Git revision 'nope'",
    }.items():
        done = run("chargpt", "report", *arguments, check=False)
        assert (done.returncode, message in done.stderr, "Traceback" in done.stderr) == (1, True, False), done.stderr
    run("git", "tag", "-d", "chargpt@v1.0.0")
    run("git", "reset", "-q", "--hard", "HEAD~2")
