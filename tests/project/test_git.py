"""Failures of git are reported in git's own words, and never count as an answer."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from chargpt.errors import ChargptError
from chargpt.project import compare
from chargpt.project.check import git_problems
from chargpt.project.git import git, reason, try_git, untracked_code, without_credentials
from tests.conftest import IDENTITY, SIGNED


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, as the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", *IDENTITY, "commit", "-q", "--allow-empty", "-m", "start"], check=True)
    return tmp_path


def fail(how: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make git fail; return what it says."""
    if how == "another owner":
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
        return f"git config --global --add safe.directory {folder}"
    if how == "not installed":
        monkeypatch.setenv("PATH", "")
        return "git is not installed, and DVC needs it; install it"
    monkeypatch.setattr("chargpt.project.git.TIMEOUT_S", 1)
    (folder / "bin").mkdir()
    (folder / "bin/git").write_text("#!/bin/sh\nexec sleep 30\n")
    (folder / "bin/git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}/bin", prepend=os.pathsep)
    return "no answer within 1 seconds"


@pytest.mark.parametrize("how", ["another owner", "not installed", "timeout"])
def test_failures_of_git_are_reported(how: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "chargpt").mkdir()
    (folder / "chargpt/new.py").touch()
    assert (untracked_code() or "").startswith("chargpt/new.py: not tracked by git")
    said = fail(how, folder, monkeypatch)
    with pytest.raises(ChargptError) as error:
        untracked_code()
    assert said in str(error.value) and "\n" not in str(error.value)
    (problem,) = git_problems()
    assert said in problem and "git init" not in problem
    assert try_git("status") is None


@pytest.mark.parametrize(
    ("commands", "said"),
    [
        (["clone", "-q", "--filter=blob:none", "file://{}", "clone"], "run: git config --unset remote.origin.partial"),
        (["update-index", "--split-index"], "run: git update-index --no-split-index"),
        (["mv", "metrics", "sub/metrics"], "the project is in sub/ of a git repository"),
    ],
)
def test_metrics_are_read_where_dvc_cannot(
    commands: list[str], said: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a partial clone and with a split index, DVC waits for ever. `check` says so, and a printed remedy works."""
    for path in ("metrics/evaluate.json", "sub/x"):
        (folder / path).parent.mkdir()
        (folder / path).write_text('{"val_loss": 2}')
    git("add", "--all")
    git(*IDENTITY, "commit", "-q", "-m", "metrics")
    git("config", "uploadpack.allowFilter", "true")
    git(*[command.format(folder) for command in commands])
    git(*IDENTITY, "commit", "-q", "--allow-empty", "-m", "moved")
    monkeypatch.chdir({"clone": "clone", "mv": "sub"}.get(commands[0], "."))
    monkeypatch.setattr("chargpt.project.check.relative_remote", lambda: None)  # it needs a project of DVC
    assert compare.metrics_at("HEAD") == {"val_loss": 2}
    for name, value in SIGNED.items():
        monkeypatch.setenv(name, value)
    (problem,) = git_problems()
    assert said in problem
    if commands[0] != "mv":
        subprocess.run(["sh", "-ec", problem.split("run: ")[1]], check=True)
        assert list(git_problems()) == []


def test_a_folder_without_repository(tmp_path: Path) -> None:
    with pytest.raises(ChargptError, match=r"^git rev-parse: fatal: not a git repository \(or any"):
        git("rev-parse", "--git-dir", folder=tmp_path)


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        ("", "exit status 3 without a message"),
        ("\n \n", "exit status 3 without a message"),
        ("warning: a\nfatal: b\n\n  c\n", "fatal: b c"),
        ("ERROR: first\nERROR: last\n", "ERROR: last"),
        ("no prefix\nlast line\n", "last line"),
        ("error: the stage's\nERROR: failed to reproduce\n", "error: the stage's ERROR: failed to reproduce"),
        ("ERROR: no keys\n\nHaving any troubles? Hit us up\n", "ERROR: no keys"),
        ("fatal: unable to access 'https://me:token@host/x.git'", "fatal: unable to access 'https://host/x.git'"),
    ],
)
def test_reason_of_a_failed_command(stderr: str, expected: str) -> None:
    assert reason(stderr, 3) == expected


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:p@ss@host:1/a@b.git", "https://host:1/a@b.git"),
        ("clone https://token@host/a and ssh://git@host/b", "clone https://host/a and ssh://host/b"),
        ("git@host:a/b.git", "git@host:a/b.git"),
        ("/srv/a@b", "/srv/a@b"),
    ],
)
def test_credentials_are_removed_from_urls(url: str, shown: str) -> None:
    assert without_credentials(url) == shown


def test_a_pre_release_is_older_than_its_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "metrics").mkdir()
    for loss, version in enumerate(["v0.9.0", "v1.0.0-rc1", "v1.0.0", "v0.10.0", "vx"]):
        (folder / "metrics/evaluate.json").write_text(f'{{"val_loss": {loss}}}')
        git("add", "metrics")
        git(*IDENTITY, "commit", "-q", "-m", version)
        git("tag", f"chargpt@{version}")
    monkeypatch.setattr(compare, "metrics_at", lambda tag: json.loads(git("show", f"{tag}:metrics/evaluate.json")))
    assert compare.previous_version({}) == ("chargpt@v1.0.0", {"val_loss": 2})
    assert compare.previous_version({"val_loss": 2}) == ("chargpt@v1.0.0-rc1", {"val_loss": 1})
