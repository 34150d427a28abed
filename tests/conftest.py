from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from filelock import FileLock
from ruamel.yaml import YAML

from chargpt.__main__ import main
from chargpt.inference import kernel
from chargpt.inference.sampling import Sampling
from chargpt.model.config import GPTConfig
from chargpt.model.file import ModelFile
from chargpt.model.gpt import GPT
from chargpt.params import Params
from chargpt.project.params_file import load_params
from chargpt.text.vocab import Vocab
from tests.pipeline import ROOT

# a pipeline run at this size takes seconds
TOY: dict[str, Any] = {
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 8,
    "block_size": 8,
    "batch_size": 4,
    "max_iters": 10,
    "documents": "whole",
    "dropout": 0.0,
    "init": "scratch",
    "lr": 0.018,
    "weight_decay": 0.25,
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


def hear_hangups() -> None:
    """For a process that is to be started: SIGHUP is not ignored, as it is in tests under `nohup`."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def set_value(path: Path, **values: Any) -> None:
    """Give keys of a params.yaml other values, each in its line and whatever it was before."""
    text = path.read_text(encoding="utf-8")
    for key, value in values.items():
        text, found = re.subn(rf"(?m)^{key}: \S+", f"{key}: {value}", text)
        assert found == 1, key
    path.write_text(text, encoding="utf-8")


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


def model_file(model: GPT, vocab: Vocab | None = None) -> ModelFile:
    """What `read_model` would return for the model; its vocabulary is any of the right size if none is given."""
    return ModelFile(model.config, vocab or Vocab(map(chr, range(model.config.vocab_size))), model.arrays())


def choose(
    logits: np.ndarray,
    uniform: np.ndarray,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> np.ndarray:
    """Draw one id per row, as `generate` does."""
    return kernel.draw(logits, uniform, Sampling(temperature, top_k, top_p).choice(logits.shape[1]))


# no deadlines: a slow example on a busy machine is not a failure
hypothesis.settings.register_profile("chargpt", deadline=None, derandomize=True)
hypothesis.settings.register_profile("long", deadline=None, max_examples=10_000)
hypothesis.settings.load_profile("chargpt")


def chargpt(*arguments: str, cwd: Path, input: str | bytes = "") -> subprocess.CompletedProcess[str]:
    """Run the `chargpt` command in this process, in `cwd`; what it printed, and its exit status."""
    stdin, stdout, stderr = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="\n") for _ in range(3))
    stdin.buffer.write(input if isinstance(input, bytes) else input.encode())
    stdin.buffer.seek(0)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    status: Any = 0
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(cwd):
        patch.setenv("COLUMNS", "200")
        patch.setattr(sys, "argv", ["chargpt", *arguments])
        for name, stream in (("stdin", stdin), ("stdout", stdout), ("stderr", stderr)):
            patch.setattr(sys, name, stream)
        try:
            main()
        except SystemExit as ended:
            status = ended.code or 0
    for number, handler in handlers.items():
        signal.signal(number, handler)
    if not isinstance(status, int):  # as the interpreter shows a message
        stderr.write(f"{status}\n")
        status = 1
    said = []
    for stream in (stdout, stderr):
        stream.flush()
        said.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(["chargpt", *arguments], status, *said)


@pytest.hookimpl(trylast=True)  # only the tests that were chosen
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each test process runs a part of the list; each part begins with some of the tests that have limits of their own.

    They may take long, and nothing should wait for them at the end.
    """
    parts = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    long = [item for item in items if item.get_closest_marker("timeout")]
    others = [item for item in items if item not in long]
    ends = [len(others) * n // parts for n in range(parts + 1)]
    items[:] = [item for n in range(parts) for item in long[n::parts] + others[ends[n] : ends[n + 1]]]


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing listens on, each another one."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def until(condition: Callable[[], object], about: Callable[[], str] = str, seconds: float = 200) -> None:
    """Wait for a condition, or fail with a text about it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, about()
        time.sleep(0.05)


# a pipeline in a clone of its own

TEXT = "\n" + "".join(f"{i} bottles of beer on the wall,\n" for i in range(400))  # an empty line: not a list
Run = Callable[..., subprocess.CompletedProcess[str]]
SIGNED = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
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


CACHE = os.environ.get("XDG_CACHE_HOME", str(Path("~/.cache").expanduser()))  # compiled code, fonts


def environment_of(folder: Path) -> dict[str, str]:
    """For commands in a project below the folder: no git identity, no network, DVC directories of its own."""
    foreign = ("GIT_", "DVC_", "AWS_", "RCLONE_", "PYTHONPATH")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    return inherited | {
        "HOME": str(folder),
        "XDG_CACHE_HOME": CACHE,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "DVC_SITE_CACHE_DIR": str(folder / "site"),
        "DVC_NO_ANALYTICS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "CHARGPT_CACHE_DIR": str(folder / "cache"),
        "https_proxy": "http://127.0.0.1:9",
        "no_proxy": "127.0.0.1",  # the tests' own servers
        "PIP_NO_INDEX": "1",
        "OMP_NUM_THREADS": "1",  # at toy size more threads only wait for one another
    }


def commit(folder: Path, message: str) -> None:
    """Commit everything."""
    for command in (["add", "--all"], ["commit", "-q", "-m", message]):
        subprocess.run(["git", *IDENTITY, *command], cwd=folder, check=True)


Shared = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Shared:
    """Returns the folder of a name, which the first test process that asks for it has filled with `fill(folder)`."""
    base = tmp_path_factory.getbasetemp() if worker_id == "master" else tmp_path_factory.getbasetemp().parent

    def shared(name: str, fill: Callable[[Path], None]) -> Path:
        folder = base / name
        with FileLock(base / f"{name}.lock"):
            if not (base / f"{name}.filled").exists():
                folder.mkdir()
                fill(folder)
                (base / f"{name}.filled").touch()
        return folder

    return shared


@pytest.fixture(scope="session")
def template(shared: Shared) -> Path:
    """A toy project, reproduced once and committed, for all tests to copy. What DVC said is in `said.txt` beside it."""

    def fill(folder: Path) -> None:
        project = folder / "project"
        clone(project)
        subprocess.run(["git", "init", "-q"], cwd=project, check=True)
        commit(project, "start")
        done = subprocess.run(["dvc", "repro"], cwd=project, env=environment_of(folder), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        commit(project, "repro")
        (folder / "said.txt").write_text(done.stdout + done.stderr)

    return shared("template", fill) / "project"


@pytest.fixture(scope="session")
def worker_id(request: pytest.FixtureRequest) -> str:
    """The name of this test process, `master` if it is the only one."""
    return str(getattr(request.config, "workerinput", {}).get("workerid", "master"))


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Path:
    """A copy of the reproduced toy project, for the tests of one file."""
    return Path(shutil.copytree(template, tmp_path_factory.mktemp("copy") / "repo", symlinks=True))


@pytest.fixture(scope="module")
def environment(repo: Path) -> dict[str, str]:
    """For commands in the copy."""
    return environment_of(repo.parent)


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
