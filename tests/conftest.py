from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from ruamel.yaml import YAML

from chargpt.model import GPT, GPTConfig
from chargpt.params import Params, load_params
from chargpt.vocab import Vocab
from tests.pipeline import ROOT

# a pipeline run at this size takes seconds
TOY: dict[str, Any] = {
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 8,
    "block_size": 8,
    "batch_size": 4,
    "max_iters": 10,
    "eval_interval": 5,
    "warmup_iters": 2,
    "num_samples": 2,
    "max_tokens": 20,
    "prompt": "a",
    "device": "cpu",
}


def write_params(path: Path, **changes: Any) -> Path:
    """The committed params.yaml with toy sizes and the given changes, written to `path`."""
    values = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8")) | TOY | changes
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(values, file)
    return path


@pytest.fixture
def toy_params(tmp_path: Path) -> Params:
    return load_params(write_params(tmp_path / "params.yaml"))


@pytest.fixture
def vocab() -> Vocab:
    return Vocab("\n !abcdefgh\u00e9\u2603\U0001f600")


@pytest.fixture
def model(vocab: Vocab) -> GPT:
    return random_model(GPTConfig(len(vocab), block_size=8, n_layer=2, n_head=2, n_embd=8))


def random_model(config: GPTConfig, seed: int = 0) -> GPT:
    """A model whose every weight matters: biases and norms random too, attention far from uniform."""
    torch.manual_seed(seed)
    model = GPT(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, mean=1.0 if p.dim() == 1 and p is not model.lm_head.bias else 0.0, std=0.3)
    return model.eval()


# one slow example on a busy machine is no failure
hypothesis.settings.register_profile("chargpt", deadline=None)
hypothesis.settings.load_profile("chargpt")


# a pipeline in a clone of its own

TEXT = "".join(f"{i} bottles of beer on the wall,\n" for i in range(400))
Run = Callable[..., subprocess.CompletedProcess[str]]
IDENTITY = ["-c", "user.name=test", "-c", "user.email=test@example.org"]


def clone(folder: Path) -> None:
    """The project as `git add --all` sees it, in a fresh repository with toy parameters and a text of its own."""
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in files.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data/mine.txt").write_text(TEXT, newline="\n")
    write_params(folder / "params.yaml", corpus="data/mine.txt", prompt="9")


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repo")
    clone(folder)
    for command in (["init", "-q"], ["add", "--all"], ["commit", "-q", "-m", "start"]):
        subprocess.run(["git", *IDENTITY, *command], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def environment(repo: Path) -> dict[str, str]:
    """For commands in the clone: no git identity, no network, DVC directories of its own."""
    foreign = ("GIT_", "DVC_", "AWS_", "RCLONE_", "PYTHONPATH")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    return inherited | {
        "HOME": str(repo.parent),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "DVC_SITE_CACHE_DIR": str(repo.parent / "site"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "CHARGPT_CACHE_DIR": str(repo.parent / "cache"),
        "https_proxy": "http://127.0.0.1:9",
        "no_proxy": "127.0.0.1",  # the tests' own servers
        "PIP_NO_INDEX": "1",
        "OMP_NUM_THREADS": "1",  # at toy size more threads only wait for one another
    }


@pytest.fixture(scope="module")
def run(repo: Path, environment: dict[str, str]) -> Run:
    """Runs a command in the clone, or in `cwd`, with further environment variables."""

    def run(*command: str, check: bool = True, cwd: Path = repo, **variables: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, cwd=cwd, env=environment | variables, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    return run


def undo(run: Run) -> None:
    """Back to the committed run, as a user would go back."""
    run("git", "reset", "-q", "--hard")
    run("dvc", "checkout", "-q", "--force")


def blocks(heading: str, language: str = "bash") -> list[str]:
    """The code blocks of a section of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
