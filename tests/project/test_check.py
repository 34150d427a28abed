"""`chargpt check`, and what stops an experiment before it starts, in real clones."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.conftest import Run, set_value, undo
from tests.project import error, exp_ref

pytestmark = pytest.mark.system


def test_check_names_the_stages_that_changed(repo: Path, run: Run) -> None:
    assert run("chargpt", "check").stdout == "all in order; up to date\n"
    set_value(repo / "params.yaml", lr=0.01)
    assert run("chargpt", "check").stdout == "all in order; next: dvc repro (changed: train, sample)\n"
    undo(run)


def test_check_refuses_a_prompt_or_text_that_would_fail_later(repo: Path, run: Run) -> None:
    """And so do the stages before a training that would end without its samples."""
    params, text = repo / "params.yaml", repo / "data/mine.txt"
    set_value(params, prompt='"9\u00fc"')
    said = "prompt: '\u00fc' does not occur in data/mine.txt; choose another with -S prompt=..."
    assert said in error(run("chargpt", "check", check=False))
    for stage in ("prepare", "train"):
        assert error(run(sys.executable, "-m", "stages", stage, check=False)) == f"error: {said}\n"
    undo(run)
    for content, problem in {
        "": "corpus: data/mine.txt is empty; set it to the path of a UTF-8 text",
        "\udcff9": "data/mine.txt: byte 0 (0xff) is not UTF-8; save the text as UTF-8",
    }.items():
        text.write_bytes(content.encode(errors="surrogateescape"))
        assert f"problem: {problem}\n" in error(run("chargpt", "check", check=False))
    undo(run)


def test_check_names_changed_configuration_and_relative_remotes(repo: Path, run: Run) -> None:
    pipeline = repo / "dvc.yaml"
    text = pipeline.read_text()
    pipeline.write_text(text + "# edited\n")
    note, end = run("chargpt", "check").stdout.splitlines()
    assert note == (
        "note: Changed since the last commit: dvc.yaml. To discard the changes, run: git checkout HEAD -- dvc.yaml"
    )
    assert end == "all in order; up to date"
    pipeline.write_text(text)
    run("dvc", "remote", "add", "-d", "--local", "near", "../near")
    said = error(run("chargpt", "check", check=False))
    assert "the DVC remote near has a relative path" in said
    run("bash", "-ec", said.split("run: ")[1].split(" (or")[0].replace(" url ", " --local url "))
    assert run("chargpt", "check").stdout == "all in order; up to date\n"
    (repo / ".dvc/config.local").unlink()


def test_different_bytes_from_the_same_inputs_are_noted(repo: Path, run: Run) -> None:
    """With the command that records them."""
    lock = repo / "dvc.lock"
    real = lock.read_text()
    model = next(out["md5"] for out in YAML(typ="safe").load(real)["stages"]["train"]["outs"])
    lock.write_text(real.replace(model, "f" * 32))
    run("git", "commit", "-q", "-a", "-m", "run on a different CPU")
    lock.write_text(real)
    note, end = run("chargpt", "check").stdout.splitlines()
    assert end == "all in order; up to date"
    assert note.startswith(
        "note: train produced different bytes from the committed run: a different CPU or thread count"
    )
    set_value(repo / "params.yaml", lr=0.01)
    assert run("chargpt", "check").stdout.splitlines()[-1] == "all in order; next: dvc repro (changed: train, sample)"
    run("git", "checkout", "params.yaml")
    run("bash", "-ec", note.split("To record yours, run: ")[1])
    assert run("chargpt", "check").stdout == "all in order; up to date\n"
    run("git", "reset", "-q", "--hard", "HEAD~2")


def test_check_does_not_load_torch(repo: Path, environment: dict[str, str]) -> None:
    code = (
        "import sys; from chargpt.project import check; assert not list(check.problems()); check.changed_stages();"
        " assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=repo, env=environment, check=True)


def check_in(folder: Path, environment: dict[str, str], **changes: str | None) -> str:
    changed = {k: v for k, v in (environment | changes).items() if v is not None}
    command = [str(Path(sys.executable).parent / "chargpt"), "check"]
    return error(subprocess.run(command, cwd=folder, env=changed, capture_output=True, text=True))


def test_check_names_every_problem(repo: Path, run: Run, environment: dict[str, str], tmp_path: Path) -> None:
    def check(**changes: str | None) -> str:
        return check_in(repo, environment, **changes)

    assert "git has no name and email for commits" in check(GIT_AUTHOR_NAME=None)
    git = shutil.which("git")
    assert git
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/git").symlink_to(git)
    assert "`python`, which is missing; run: . " in check(PATH=str(tmp_path / "bin"))
    (tmp_path / "bin/python").symlink_to("/bin/true")
    assert f"`python`, which is {tmp_path}/bin/python" in check(PATH=str(tmp_path / "bin"))
    (repo / "chargpt/later.py").write_text("")
    assert "chargpt/later.py: not tracked by git" in check()
    (repo / "chargpt/later.py").unlink()
    params = repo / "params.yaml"
    params.write_text(params.read_text() + "learning_rate: 1\n")
    assert "unknown key learning_rate" in check()
    undo(run)
    set_value(params, device="cuda:7")
    assert "device cuda:7 is not available here" in check()
    undo(run)
    set_value(params, corpus="data/nope.txt", legacy_dir="data/old")
    said = check()
    assert "corpus is 'data/nope.txt', and there is no such file" in said
    assert "legacy_dir is 'data/old', which is not a directory" in said
    undo(run)
    set_value(params, corpus=f"{repo}/data/../data/tinyshakespeare.txt")
    assert "no such file" not in check(GIT_AUTHOR_NAME=None)  # that one will be downloaded
    undo(run)
    shallow = tmp_path / "shallow"
    run("git", "commit", "-q", "--allow-empty", "-m", "more")
    run("git", "clone", "-q", "--depth", "1", f"file://{repo}", str(shallow))
    assert "run: git fetch --unshallow --tags" in check_in(shallow, environment)
    shutil.rmtree(shallow / ".git")
    assert "not a git repository (or any of the parent directories): .git; run: git init" in check_in(
        shallow, environment
    )
    run("git", "init", "-q", str(shallow))
    assert "no commit yet" in check_in(shallow, environment)
    run("git", "reset", "-q", "--hard", "HEAD~1")


def test_check_prints_one_line_per_problem(repo: Path, run: Run) -> None:
    """Several of params.yaml, and none more for a file whose name holds a line break."""
    params = repo / "params.yaml"
    set_value(params, lr="high")
    params.write_text(params.read_text().replace("seed: ", "sede: "))
    odd = repo / "chargpt/a\x1b[31m\nproblem: b.py"
    odd.touch()
    said = error(run("chargpt", "check", check=False)).splitlines()
    odd.unlink()
    undo(run)
    assert [line.split(": ")[0] for line in said] == ["problem"] * 4 + ["error"]
    assert said[0].startswith("problem: params.yaml: key seed is missing")
    assert said[2] == "problem: params.yaml: unknown key sede: did you mean seed?"
    assert r"chargpt/a\x1b[31m\nproblem: b.py: not tracked by git" in said[3]
    assert said[4] == "error: problems found; fix them and run: chargpt check"


@pytest.mark.slow
def test_an_experiment_with_untracked_code_is_refused(repo: Path, run: Run) -> None:
    (repo / "chargpt/later.py").write_text("")
    for how in (["--temp"], []):
        done = run("dvc", "exp", "run", *how, "-S", "temperature=0.5", check=False)
        assert done.returncode != 0
        assert "error: chargpt/later.py: not tracked by git, so experiments lack it; run: git add" in done.stderr
        undo(run)
    run("git", "add", "chargpt/later.py")
    run("dvc", "exp", "run", "--temp", "-n", "added", "-S", "temperature=0.5")
    assert "chargpt/later.py" in run("git", "ls-tree", "-r", "--name-only", "refs/exps/" + exp_ref(run, "added")).stdout
    undo(run)
