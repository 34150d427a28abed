"""`chargpt release` in a real clone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Run, set_value, undo
from tests.project import error

pytestmark = pytest.mark.system


@pytest.mark.slow
def test_release_refuses_an_incomplete_version(repo: Path, run: Run) -> None:
    def refused(*arguments: str) -> str:
        done = run("chargpt", "release", *arguments, check=False)
        assert run("git", "tag").stdout == ""
        return error(done)

    assert "1.0: not a version; it must look like v1.2.0" in refused("1.0")
    assert "not on the remote: artifacts/hf, " in refused("v1.0.0")
    run("dvc", "push")
    (repo / "notes.txt").write_text("")
    assert "not committed: notes.txt; commit these files, move them or name them in .gitignore" in refused("v1.0.0")
    (repo / "notes.txt").unlink()
    (repo / "README.md").write_text("")
    assert "not committed: README.md" in refused("v1.0.0")
    pipeline = (repo / "dvc.yaml").read_text()
    for damaged in ("", "7", "artifacts: 7", "{", "\xa0: [", "artifacts: !!python/name:os.system {}"):
        (repo / "dvc.yaml").write_text(damaged)
        assert len(refused("v1.0.0").splitlines()) == 1
        done = run("chargpt", "check", check=False)
        assert done.returncode == 1 and "run: git checkout dvc.yaml" in done.stdout + done.stderr, damaged
    (repo / "dvc.yaml").unlink()
    assert "dvc.yaml: " in refused("v1.0.0")
    (repo / "dvc.yaml").write_text(pipeline)
    undo(run)
    params = repo / "params.yaml"
    set_value(params, lr=0.01)
    run("git", "commit", "-q", "-a", "-m", "edited without a run")
    assert "dvc.lock does not match" in refused("v1.0.0")
    run("git", "reset", "-q", "--hard", "HEAD~1")
    undo(run)
    (repo / "artifacts/sample.txt").write_text("edited")
    assert "does not match the code, params.yaml or the outputs here" in refused("v1.0.0")
    undo(run)
    store = repo / ".dvc/config"
    text = store.read_text()
    run("dvc", "remote", "modify", "--local", "store", "url", "/proc/nowhere")
    assert "not on the remote" in refused("v1.0.0")
    (repo / ".dvc/config.local").unlink()
    assert store.read_text() == text


@pytest.mark.slow
def test_release_makes_a_version(repo: Path, run: Run) -> None:
    run("dvc", "push")
    note, registered = run("chargpt", "release", "1.0.0").stdout.splitlines()
    assert "only you, on this machine, can fetch it" in note
    assert registered == ("registered chargpt@v1.0.0; next: git push origin chargpt@v1.0.0")
    assert run("git", "cat-file", "-t", "chargpt@v1.0.0").stdout == "tag\n"
    assert "v1.0.0" in run("gto", "show", "chargpt").stdout
    assert "chargpt" in error(run("chargpt", "release", "v1.0.0", check=False))
    # the next model's page shows what it is compared with, and no version of itself
    run("dvc", "exp", "run", "-S", "lr=0.01", "-S", "max_iters=12")
    run("git", "commit", "-q", "-a", "-m", "next")
    assert run("chargpt", "report").stdout == "wrote report.html; compared with chargpt@v1.0.0\n"
    page = (repo / "report.html").read_text()
    assert "chargpt@v1.0.0" in page and "change" in page
    run("dvc", "push")
    run("chargpt", "release", "v1.1.0")
    run("chargpt", "report")
    assert (repo / "report.html").read_text() == page
    assert "compared with chargpt@v1.1.0" in run("chargpt", "report", "--against", "chargpt@v1.1.0").stdout
    assert (repo / "report.html").read_text().count("+0.0000") == 3
    run("git", "tag", "-d", "chargpt@v1.0.0", "chargpt@v1.1.0")
    run("git", "reset", "-q", "--hard", "HEAD~1")
