"""The commands that the documents print, run as printed in a copy of the toy project, page by page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SIGNED, TEXT, environment_of, write_params
from tests.docs.pages import PAGES, blocks

pytestmark = pytest.mark.system

# characters that the toy text has, and places that are here
HERE = {
    '"First Citizen:': '"9',
    '"ROMEO:': '"9',
    '"Thy"': '"8 "',
    '"Enter KING"': '"9 bottles"',
    'prompt="The "': 'prompt="of "',
    " NAME": " hot",
    " BRANCH": " hot-branch",
}
# what needs what is not here (network, machines, an hour), and a queue's workers, which test_experiments.py awaits
NOT_HERE = r"pip install|pre-commit |python -m (venv|vllm)|\. \.venv|PET_|dvc exp run -S n_layer=6|dvc queue start|hf "
NOT_HERE += r"|chargpt (sweep|trial)|mutmut |ssh |ray |sky "
# run in an order of their own by tests/project/test_versions.py and test_remotes.py
ELSEWHERE = {"docs/versions.md"}
RUN = [page for page in PAGES if blocks(page) and page not in ELSEWHERE]
QUICK = {"README.md", "CONTRIBUTING.md", "docs/interruptions.md", "docs/troubleshooting.md"}


@pytest.fixture
def copy(repo: Path, tmp_path: Path) -> Path:
    """A copy for one page, with a remote for git and an experiment."""
    folder = tmp_path / "project"
    for command in (
        ["git", "clone", "-q", "--bare", str(repo), str(tmp_path / "bare.git")],
        ["cp", "-a", str(repo), str(folder)],
        ["git", "-C", str(folder), "remote", "add", "origin", str(tmp_path / "bare.git")],
    ):
        subprocess.run(command, check=True)
    return folder


def here(commands: str) -> str:
    """The commands with the names of what exists in the copy, and short trainings."""
    for printed, ours in HERE.items():
        commands = commands.replace(printed, ours)
    return re.sub(r"(max_iters|eval_interval)=\d+", r"\1=5", commands)


def shell(commands: str, folder: Path, **variables: str) -> str:
    done = subprocess.run(
        ["bash", "-ec", commands],
        cwd=folder,
        env=environment_of(folder.parent) | SIGNED | variables,
        input="y\n" * 5,  # `dvc gc` asks
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, commands + done.stdout + done.stderr
    return done.stdout


def printed(page: str) -> list[str]:
    """The page's commands, those aside that need what is not here; a command may go over several lines."""
    mine = [block for block in blocks(page) if block not in blocks("docs/versions.md")]
    lines = [line for block in mine for line in block.replace("\\\n", "").splitlines()]
    return [line for line in lines if not re.match(NOT_HERE, line)]


def prepare(page: str, folder: Path) -> dict[str, str]:
    """What a reader of the page has; environment variables to run with."""
    if page == "MIGRATION.md":  # the legacy model's own text
        write_params(folder / "params.yaml", prompt="A")
        return {name: "" for name in ("https_proxy", "PIP_NO_INDEX")}
    if page == "docs/troubleshooting.md":
        shell("dvc remote add -d -f --local team $PWD/../team && dvc push -q", folder)
    if page in ("docs/generating.md", "docs/engines.md"):  # texts there are longer than the toy's context
        write_params(folder / "params.yaml", corpus="data/mine.txt", prompt="9", block_size=64)
        shell("dvc repro -q", folder)
    if page in ("docs/unusual.md", "docs/experiments.md"):
        for name in ("normal.log", "app.log", "names.txt"):
            (folder / "data" / name).write_text(TEXT, newline="\n")
    if page == "docs/experiments.md":
        shell("dvc exp run --temp -n hot -S lr=0.004", folder)
    return {}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [pytest.param(page, marks=[] if page in QUICK else pytest.mark.slow) for page in RUN])
def test_a_page_runs_as_printed(page: str, copy: Path) -> None:
    variables = prepare(page, copy)
    commands = printed(page)
    if page == "MIGRATION.md":
        commands.insert(0, commands.pop(commands.index("dvc repro download")))
    if page == "README.md":  # the list and the log are run by the pages about them
        commands = [command for command in commands if not re.search(r"documents|app\.log", command)]
    if page == "CONTRIBUTING.md":  # its tests are this
        commands = [command for command in commands if not command.startswith("pytest") and ".ci/run" not in command]
    md5 = subprocess.run(["grep", "-A2", "artifacts/model.safetensors", "dvc.lock"], cwd=copy, capture_output=True)
    digest = re.search(rb"md5: ([0-9a-f]{32})", md5.stdout)
    assert digest
    for command in commands if page == "MIGRATION.md" else map(here, commands):
        shell(command.replace("'MD5'", f"'{digest[1].decode()}'"), copy, **variables)
    for block in blocks(page, language="python"):
        if "import mlflow" in block:  # which is not a dependency
            continue
        shell(f"{sys.executable} - <<'END'\n{here(block)}\nEND", copy)


@pytest.mark.slow
def test_a_rerun_leaves_git_clean(copy: Path) -> None:
    """As the page on reproducibility says."""
    repeat, status = blocks("docs/reproducibility.md")[0].splitlines()
    shell(repeat, copy)
    assert shell(status, copy) == ""
