"""Remotes with real servers on loopback: push, lose everything, pull, compare; and what goes wrong on the way."""

from __future__ import annotations

import hashlib
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from chargpt.errors import ChargptError
from chargpt.model.file import load_model
from chargpt.project.remotes import default_remote
from tests.conftest import Run, free_ports, set_value
from tests.docs.pages import blocks

pytestmark = pytest.mark.remote

MODEL = "artifacts/model.safetensors"
KEY, SECRET = secrets.token_hex(10), secrets.token_hex(20)  # in no file that git could know
# one attempt: the default ones only make a dead server's tests ten seconds longer
CREDENTIALS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_MAX_ATTEMPTS": "1"}
# the documented way to remove an object, whatever kind the remote is of
(HEAL,) = [block for block in blocks("docs/troubleshooting.md", "Remotes") if "MD5" in block]
DELETE = shlex.split(HEAL.splitlines()[0])[2]


@contextmanager
def serve(kind: str, folder: Path, environment: dict[str, str], *options: str) -> Iterator[str]:
    """Run `rclone serve` on a free loopback port, and yield its address."""
    port = free_ports(1)[0]
    address, log = f"127.0.0.1:{port}", folder.with_suffix(".log")
    command = ["rclone", "serve", kind, str(folder), "--addr", address, "--config", "", "-vv", *options]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline, refused = time.monotonic() + 60, True
        while refused:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            with socket.socket() as client:
                refused = client.connect_ex(("127.0.0.1", port)) != 0
        yield address
    finally:
        process.kill()
        process.wait()


def outputs(folder: Path) -> dict[str, str]:
    """The sha256 of each file that DVC, not git, keeps."""
    files = [folder / "data/tinyshakespeare.txt", folder / "data/tokens.safetensors", folder / "metrics/report.html"]
    files += (folder / "metrics").glob("*.tsv")
    files += [path for path in (folder / "artifacts").rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def lose(folder: Path) -> None:
    """Delete the cache and everything that can be pulled."""
    for name in outputs(folder):
        (folder / name).unlink()
    shutil.rmtree(folder / ".dvc/cache")


def md5(folder: Path) -> str:
    """The name under which remotes keep the model."""
    lock = YAML(typ="safe").load((folder / "dvc.lock").read_text())
    (found,) = (out["md5"] for out in lock["stages"]["train"]["outs"] if out["path"] == MODEL)
    return str(found)


def stored(store: Path, name: str) -> Path:
    return store / "files/md5" / name[:2] / name[2:]


def damage(path: Path) -> None:
    """Flip one bit, as a failing disk would: size and mode stay."""
    mode = path.stat().st_mode
    path.chmod(0o644)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    path.chmod(mode)


def configure(folder: Path, remote: str, **options: str) -> None:
    """What `dvc remote modify --local` writes, without its second for each option."""
    lines = [f"['remote \"{remote}\"']\n", *(f"    {name} = {value}\n" for name, value in options.items())]
    (folder / ".dvc/config.local").write_text("".join(lines))


@pytest.fixture(scope="module")
def reproduced(repo: Path, run: Run) -> dict[str, str]:
    run("git", "tag", "-a", "chargpt@v1.0.0", "-m", "first")
    return outputs(repo)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[tuple[str, Path]]:
    """The address of an S3 server, and the directory that its bucket is."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "bucket").mkdir()
    with serve("s3", folder, environment, "--auth-key", f"{KEY},{SECRET}") as address:
        yield address, folder / "bucket"


@pytest.fixture(scope="module")
def team(repo: Path, run: Run, reproduced: dict[str, str], s3: tuple[str, Path]) -> dict[str, Any]:
    """A repository whose default remote is S3, and what two of its commits hold, pushed with their run cache."""
    folder = repo.parent / "team"
    shutil.copytree(repo, folder)
    run("dvc", "remote", "add", "-d", "team", "s3://bucket/chargpt", cwd=folder)
    run("dvc", "remote", "modify", "team", "endpointurl", f"http://{s3[0]}", cwd=folder)
    run("dvc", "remote", "modify", "team", "verify", "true", cwd=folder)
    run("dvc", "remote", "modify", "--local", "team", "access_key_id", KEY, cwd=folder)
    run("dvc", "remote", "modify", "--local", "team", "secret_access_key", SECRET, cwd=folder)
    found: dict[str, Any] = {"folder": folder}
    for name in ("old", "new"):
        if name == "new":
            run("dvc", "exp", "run", "-S", "seed=2", cwd=folder)
        run("git", "commit", "-q", "-a", "-m", name, cwd=folder)
        run("dvc", "push", "--run-cache", cwd=folder)
        found[name] = outputs(folder)
        found[f"{name} commit"] = run("git", "rev-parse", "HEAD", cwd=folder).stdout.strip()
    run("git", "tag", "-a", "chargpt@v2.0.0", "-m", "second", cwd=folder)
    assert run("git", "status", "--porcelain", cwd=folder).stdout == "", "credentials stay out of git"
    assert found["old"] == reproduced
    assert found["old"][MODEL] != found["new"][MODEL]
    return found


@pytest.fixture
def clone(run: Run, team: dict[str, Any], tmp_path: Path) -> Path:
    """A colleague's clone, which has git's files only."""
    run("git", "clone", "-q", str(team["folder"]), str(tmp_path / "clone"))
    return tmp_path / "clone"


def test_a_user_without_name_and_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `docker run -u 12345`: DVC would fail."""
    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000)
    with pytest.raises(ChargptError, match=r"user 4000000000 has not; run: export USER=me HOME=/tmp$"):
        default_remote()


def default_store(environment: dict[str, str]) -> Path:
    return Path(environment["HOME"]) / ".local/share/chargpt/store"


@pytest.mark.slow
def test_default_remote(
    repo: Path, run: Run, environment: dict[str, str], reproduced: dict[str, str], tmp_path: Path
) -> None:
    """Nothing is set up: clones on this machine fetch the model, experiments and results from one another."""
    outside = sorted(Path("/").iterdir())
    folder = tmp_path / "mine"
    shutil.copytree(repo, folder)
    run("git", "clone", "-q", "--bare", "mine", "bare", cwd=tmp_path)
    run("git", "remote", "add", "origin", str(tmp_path / "bare"), cwd=folder)
    run("dvc", "push", "--run-cache", cwd=folder)
    run("dvc", "exp", "run", "-n", "other-seed", "-S", "seed=2", cwd=folder)
    run("dvc", "exp", "push", "--run-cache", "origin", "other-seed", cwd=folder)
    theirs = outputs(folder)
    run("git", "reset", "-q", "--hard", cwd=folder)
    lose(folder)
    for source in ("mine", "bare"):
        run("dvc", "get", source, MODEL, "-o", f"{source}-1", cwd=tmp_path)
        run("dvc", "artifacts", "get", source, "chargpt", "--rev", "v1.0.0", "-o", f"{source}-2", cwd=tmp_path)
        for got in (f"{source}-1", f"{source}-2"):
            assert hashlib.sha256((tmp_path / got).read_bytes()).hexdigest() == reproduced[MODEL], got

    run("git", "clone", "-q", "bare", "clone", cwd=tmp_path)
    clone = tmp_path / "clone"
    assert "next: dvc repro --pull (changed: " in run("chargpt", "check", cwd=clone).stdout
    done = run("dvc", "repro", "--pull", cwd=clone)
    assert "Running stage" not in done.stdout
    assert outputs(clone) == reproduced
    assert run("git", "status", "--porcelain", cwd=clone).stdout == ""
    run("dvc", "exp", "pull", "origin", "other-seed", cwd=clone)
    run("dvc", "exp", "apply", "other-seed", cwd=clone)
    assert outputs(clone) == theirs
    run("git", "reset", "-q", "--hard", cwd=clone)
    # a run that the other clone made and pushed
    shutil.rmtree(clone / ".dvc/cache")
    set_value(clone / "params.yaml", seed=2)
    done = run("dvc", "repro", "--pull", cwd=clone)
    assert "Running stage 'train'" not in done.stdout
    assert outputs(clone)[MODEL] == theirs[MODEL]

    assert sorted(Path("/").iterdir()) == outside
    assert [path.name for path in (Path(environment["HOME"]) / ".local/share").iterdir()] == ["chargpt"]
    assert [path.name for path in default_store(environment).iterdir()] == ["files", "runs"]


@pytest.mark.slow
def test_a_clone_whose_results_nobody_pushed(repo: Path, run: Run, environment: dict[str, str], tmp_path: Path) -> None:
    """`dvc repro --pull`, which `chargpt check` names there, then makes the results instead."""
    alone = {"HOME": str(tmp_path / "home")}
    run("git", "clone", "-q", str(repo), str(tmp_path / "clone"))
    done = run("dvc", "repro", "--pull", cwd=tmp_path / "clone", **alone)
    assert "Running stage 'train'" in done.stdout
    assert outputs(tmp_path / "clone") == outputs(repo)


def test_s3_round_trip(run: Run, team: dict[str, Any], clone: Path) -> None:
    run("dvc", "pull", cwd=clone, **CREDENTIALS)
    assert outputs(clone) == team["new"]
    lose(clone)
    run("git", "checkout", "-q", team["old commit"], cwd=clone)
    run("dvc", "pull", cwd=clone, **CREDENTIALS)
    assert outputs(clone) == team["old"]
    url = f"file://{team['folder']}"  # as a server's: DVC clones it
    run("dvc", "get", url, MODEL, "--rev", team["old commit"], "-o", "got", cwd=clone.parent, **CREDENTIALS)
    run("dvc", "artifacts", "get", url, "chargpt", "-o", "latest", cwd=clone.parent, **CREDENTIALS)
    assert (clone.parent / "got").read_bytes() == (clone / MODEL).read_bytes()
    assert hashlib.sha256((clone.parent / "latest").read_bytes()).hexdigest() == team["new"][MODEL]


def test_damaged_object_is_refused_and_healed(
    run: Run, team: dict[str, Any], clone: Path, s3: tuple[str, Path]
) -> None:
    folder = team["folder"]
    name = md5(folder)
    damage(stored(s3[1] / "chargpt", name))

    done = run("dvc", "pull", cwd=clone, check=False, **CREDENTIALS)
    assert done.returncode != 0
    assert "Checkout failed for following targets:\nartifacts/model.safetensors" in done.stderr
    assert not (clone / MODEL).exists()

    # dvc get verifies nothing; the model file does
    url = f"file://{folder}"
    run("dvc", "get", url, MODEL, "-o", "got", cwd=clone.parent, **CREDENTIALS)
    with pytest.raises(ChargptError, match="does not match its own sha256: damaged in transfer; fetch it again"):
        load_model(clone.parent / "got")

    assert "up to date" in run("dvc", "push", cwd=folder).stdout  # it looks at names only
    run(sys.executable, "-c", DELETE.replace("MD5", name), cwd=folder)
    run("dvc", "push", cwd=folder)
    run("dvc", "pull", cwd=clone, **CREDENTIALS)
    assert outputs(clone) == team["new"]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "server", "path"), [("webdav", "webdav", "/collection"), ("ssh", "sftp", "/chargpt")])
def test_other_kinds(
    run: Run, team: dict[str, Any], environment: dict[str, str], tmp_path: Path, kind: str, server: str, path: str
) -> None:
    folder, place = tmp_path / "mine", tmp_path / kind
    shutil.copytree(team["folder"], folder)
    (place / "collection").mkdir(parents=True)  # WebDAV needs the one that the url names
    with serve(server, place, environment, "--user", "me", "--pass", SECRET) as address:
        url = f"{kind}://{address}{path}"
        configure(folder, kind, url=url, verify="true", user="me", password=SECRET)
        run("dvc", "push", "-r", kind, cwd=folder)
        assert stored(place / path[1:], md5(folder)).is_file()
        lose(folder)
        run("dvc", "pull", "-r", kind, cwd=folder)
    assert outputs(folder) == team["new"]
