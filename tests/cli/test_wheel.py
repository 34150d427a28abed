"""The wheel, installed where nothing else is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from chargpt.model.file import save_model
from chargpt.model.gpt import GPT
from chargpt.text.vocab import Vocab
from tests.pipeline import ROOT

NOT_INSTALLED = r"error: \w+ is not installed; run: pip install .*'(\.\[sweep\]|chargpt\[pipeline\])'\n"
pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files that git knows, as a fresh clone has them."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in names.split("\0"):
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(folder), str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(folder.glob("chargpt-*.tar.gz"))) == 1
    (found,) = folder.glob("chargpt-*.whl")
    return found


def test_the_wheel_holds_the_library_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path for kind in ("*.py", "*.j2", "*.js", "py.typed") for path in ROOT.glob(f"chargpt/**/{kind}")]
    assert names == {path.relative_to(ROOT).as_posix() for path in files}


def link_requirements(wheel: Path, packages: Path) -> None:
    """Give an environment what the wheel requires, and what that requires, from where this test runs."""
    (about,) = (path for path in zipfile.Path(wheel).iterdir() if path.name.endswith(".dist-info"))
    wanted = list(metadata.PathDistribution(about).requires or [])
    linked = set()
    while wanted:
        requirement = Requirement(wanted.pop())
        name = canonicalize_name(requirement.name)
        if name in linked or not (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            continue
        linked.add(name)
        found = metadata.distribution(name)
        wanted += found.requires or []
        for top in {Path(file).parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(found.locate_file(top))


@pytest.mark.slow
def test_the_wheel_works_alone(wheel: Path, tmp_path: Path, model: GPT, vocab: Vocab) -> None:
    """In an empty environment and an empty directory: nothing of this checkout is on any path, nor torch or DVC."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "venv", "env")
    (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    link_requirements(wheel, packages)
    run("env/bin/python", "-m", "pip", "install", "-q", "--no-index", wheel)
    save_model(tmp_path / "M", model, vocab)
    assert run("env/bin/chargpt", "--version").strip() == wheel.name.split("-")[1]
    text = run("env/bin/chargpt", "generate", "--model", "M", "--prompt", "abc", "--max-tokens", "20", "--seed", "1")
    assert (text[:3], len(text)) == ("abc", 24)
    (tmp_path / "x.txt").write_text("abc\nbad\n")
    assert run("env/bin/chargpt", "score", "--model", "M", "x.txt").endswith("\t0\tbad\n")
    program = "import chargpt; print(chargpt.load('M').score(['abc', 'bad']).lengths.tolist())"
    assert run("env/bin/python", "-c", program) == "[3, 3]\n"
    assert "n_layer" in run("env/bin/chargpt", "inspect", "M")
    run("env/bin/chargpt", "export", "--model", "M", "--output", "hf")
    assert (tmp_path / "hf/README.md").read_text().startswith("---\nlibrary_name: transformers\n")
    run("env/bin/chargpt", "export", "--model", "M", "--output", "play.html")
    run("env/bin/chargpt", "report", "--model", "M", "--text", "x.txt", "--output", "x.html")
    weights = ["--weights-dir", ROOT / "data/legacy/weights", "--corpus", "x.txt"]
    exports = [["export", "--model", "M", "--output", f"m.{kind}"] for kind in ("gguf", "onnx")]
    others = [["migrate", *weights], ["check"], ["gate"], ["report"], ["release", "v1.0.0"], ["sweep"], ["trial", "x"]]
    for command in [*exports, *others]:
        done = subprocess.run(
            ["env/bin/chargpt", *command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert re.fullmatch(NOT_INSTALLED, done.stderr), (command, done.stderr)
