"""`chargpt check`, `gate` and `release`, and what stops an experiment before it starts, in real clones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.conftest import SIGNED, Run, set_value, undo

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def environment(environment: dict[str, str]) -> dict[str, str]:
    return environment | SIGNED


@pytest.fixture
def metrics(repo: Path, run: Run) -> Iterator[Path]:
    yield repo / "metrics/evaluate.json"
    undo(run)


def error(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_check_is_content_and_says_what_is_next(repo: Path, run: Run) -> None:
    assert run("chargpt", "check").stdout == "all in order; up to date\n"
    set_value(repo / "params.yaml", lr=0.01)
    assert run("chargpt", "check").stdout == "all in order; next: dvc repro (changed: train, sample)\n"
    undo(run)


def test_check_reads_the_text(repo: Path, run: Run) -> None:
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


def test_check_tells_what_is_no_problem(repo: Path, run: Run, environment: dict[str, str], tmp_path: Path) -> None:
    pipeline = repo / "dvc.yaml"
    text = pipeline.read_text()
    pipeline.write_text(text + "# edited\n")
    note, end = run("chargpt", "check").stdout.splitlines()
    assert note.startswith("note: not as in the last commit: dvc.yaml; to undo an edit, or a `dvc exp apply`: git ch")
    assert end == "all in order; up to date"
    pipeline.write_text(text)
    code = "from chargpt.project import remotes as store; store.LARGE = 0.0; print(*store.notes(), sep='\\n')"
    (cache,) = run(sys.executable, "-c", code).stdout.splitlines()
    assert cache.startswith(f"DVC's cache, {repo}/.dvc/cache, holds 0.0 GB; ")
    run("dvc", *cache.split("dvc ")[1].split(), "--dry")
    run("dvc", "push")
    _, remote = run(sys.executable, "-c", code).stdout.splitlines()
    assert remote.startswith(f"the default remote, {environment['HOME']}/.local/share/chargpt/store, holds ")
    command = remote.split("dvc ")[1].replace("EVERY_OTHER_CLONE_THAT_USES_IT", str(tmp_path / "clone"))
    run("git", "clone", "-q", str(repo), str(tmp_path / "clone"))
    run("dvc", *command.split(), "--force")
    assert "not on the remote" not in run("dvc", "status", "--cloud").stdout
    run("dvc", "remote", "add", "-d", "--local", "near", "../near")
    said = error(run("chargpt", "check", check=False))
    assert "the remote near has a relative path" in said
    run("bash", "-ec", said.split("type: ")[1].split(" (or")[0].replace(" url ", " --local url "))
    assert run("chargpt", "check").stdout == "all in order; up to date\n"
    (repo / ".dvc/config.local").unlink()
    shutil.rmtree(Path(environment["HOME"]) / ".local")


def test_the_first_run_on_another_processor(repo: Path, run: Run) -> None:
    """Told at the end of the run and by `check`, with what to do; it is no drift of code, parameters or data."""
    lock = repo / "dvc.lock"
    real, figures = lock.read_text(), (repo / "metrics/evaluate.json").read_text()
    model = next(out["md5"] for out in YAML(typ="safe").load(real)["stages"]["train"]["outs"])
    lock.write_text(real.replace(model, "f" * 32))
    loss = json.loads(figures)["val_loss"]
    (repo / "metrics/evaluate.json").write_text(figures.replace(str(loss), "1.23456"))
    run("git", "commit", "-q", "-a", "-m", "run on another processor")
    lock.write_text(real)
    (repo / "metrics/evaluate.json").write_text(figures)
    done = run("dvc", "repro", "--single-item", "-f", "export")
    (note,) = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert "parameters, train made other bytes than the last commit records" in note
    assert f"(val_loss {loss:.4f} here and 1.2346 there)" in note
    assert run("chargpt", "check").stdout.splitlines() == [note, "all in order; up to date"]
    set_value(repo / "params.yaml", lr=0.01)
    assert run("chargpt", "check").stdout.splitlines()[-1] == "all in order; next: dvc repro (changed: train, sample)"
    run("git", "checkout", "params.yaml")
    run("bash", "-ec", note.split("to record yours: ")[1])
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

    assert "git does not know who you are" in check(GIT_AUTHOR_NAME=None)
    git = shutil.which("git")
    assert git
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/git").symlink_to(git)
    assert "`python`, which is not there; type: . " in check(PATH=str(tmp_path / "bin"))
    (tmp_path / "bin/python").symlink_to("/bin/true")
    assert f"`python`, which is {tmp_path}/bin/python" in check(PATH=str(tmp_path / "bin"))
    (repo / "chargpt/later.py").write_text("")
    assert "chargpt/later.py: not known to git" in check()
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
    assert "legacy_dir is 'data/old', and there is no such directory" in said
    undo(run)
    set_value(params, corpus=f"{repo}/data/../data/input.txt")
    assert "no such file" not in check(GIT_AUTHOR_NAME=None)  # that one will be downloaded
    undo(run)
    shallow = tmp_path / "shallow"
    run("git", "commit", "-q", "--allow-empty", "-m", "more")
    run("git", "clone", "-q", "--depth", "1", f"file://{repo}", str(shallow))
    assert "type: git fetch --unshallow --tags" in check_in(shallow, environment)
    shutil.rmtree(shallow / ".git")
    assert "no git repository: DVC refuses to run; type: git init" in check_in(shallow, environment)
    run("git", "init", "-q", str(shallow))
    assert "no commit yet" in check_in(shallow, environment)
    run("git", "reset", "-q", "--hard", "HEAD~1")


def test_check_tells_each_problem_on_a_line_of_its_own(repo: Path, run: Run) -> None:
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
    assert r"chargpt/a\x1b[31m\nproblem: b.py: not known to git" in said[3]
    assert said[4] == "error: 4 to correct, then check again"


def test_an_experiment_that_would_lack_code_is_refused(repo: Path, run: Run) -> None:
    (repo / "chargpt/later.py").write_text("")
    for how in (["--temp"], []):
        done = run("dvc", "exp", "run", *how, "-S", "temperature=0.5", check=False)
        assert done.returncode != 0
        assert "error: chargpt/later.py: not known to git, so not part of the experiment; type: git add" in done.stderr
        undo(run)
    run("git", "add", "chargpt/later.py")
    run("dvc", "exp", "run", "--temp", "-n", "added", "-S", "temperature=0.5")
    assert "chargpt/later.py" in run("git", "ls-tree", "-r", "--name-only", "refs/exps/" + exp_ref(run, "added")).stdout
    undo(run)


def exp_ref(run: Run, name: str) -> str:
    refs = run("git", "for-each-ref", "--format=%(refname)", "refs/exps").stdout.split()
    return next(ref for ref in refs if ref.endswith(f"/{name}")).removeprefix("refs/exps/")


def test_gate(run: Run, metrics: Path) -> None:
    figures = json.loads(metrics.read_text())
    assert "worse" in error(run("chargpt", "gate", check=False))  # nothing changed since HEAD: the commit before it
    assert run("chargpt", "gate", "--against", "HEAD").stdout.count("+0.000000") == 3
    metrics.write_text(json.dumps(figures | {"val_loss": figures["val_loss"] * 1.009}))
    assert "val_loss       HEAD " in run("chargpt", "gate").stdout
    said = error(run("chargpt", "gate", "--max-regression", "0.008", check=False)).splitlines()[-1]
    assert said == (
        "error: worse than at HEAD by more than 0.80%: val_loss;"
        " keep the old model, or allow more with --max-regression"
    )
    metrics.write_text(json.dumps(figures | {"val_loss": figures["val_loss"] * 0.9}))
    run("chargpt", "gate", "--max-regression", "0")
    metrics.write_text(json.dumps(figures).replace(str(figures["val_loss"]), "NaN"))
    assert "val_loss" in error(run("chargpt", "gate", check=False))
    metrics.write_text(json.dumps({"val_loss": 1.0}))
    assert "bits_per_char, perplexity missing" in error(run("chargpt", "gate", check=False))
    assert "unknown Git revision 'nope'" in error(run("chargpt", "gate", "--against", "nope", check=False))
    for revision in ("HEAD:metrics", "\udcff", "x" * 10_000, "HEAD^{tree}", "-1", "@{99}"):
        assert len(error(run("chargpt", "gate", "--against", revision, check=False)).splitlines()) == 1
    metrics.write_text(json.dumps(figures | {"\x1b[31m\ud800": 1.0}))
    run("git", "commit", "-q", "-a", "-m", "odd")
    assert r"\x1b[31m\ud800" in run("chargpt", "gate", "--against", "HEAD").stdout
    for odd in ("7", '"x"', "{", "[" * 5000, '{"val_loss": 1' + "0" * 400 + "}"):
        metrics.write_text(odd)
        run("git", "commit", "-q", "-a", "-m", "odd")
        metrics.write_text(json.dumps(figures))
        assert len(error(run("chargpt", "gate", "--against", "HEAD", check=False)).splitlines()) == 1
    run("git", "reset", "-q", "--hard", "HEAD~6")
    metrics.write_text(json.dumps(figures | {"val_loss": 10**400}))
    assert "val_loss missing" in error(run("chargpt", "gate", check=False))
    metrics.unlink()
    assert "no metrics here; run dvc repro" in error(run("chargpt", "gate", check=False))


def test_gate_against_an_experiment(run: Run, metrics: Path) -> None:
    run("dvc", "exp", "run", "--temp", "-n", "slow", "-S", "lr=1e-06")
    assert "val_loss       slow " in run("chargpt", "gate", "--against", "slow").stdout


def test_release_refuses_what_others_could_not_get(repo: Path, run: Run) -> None:
    def refused(*arguments: str) -> str:
        done = run("chargpt", "release", *arguments, check=False)
        assert run("git", "tag").stdout == ""
        return error(done)

    assert "1.0: not a version; it must look like v1.2.0" in refused("1.0")
    assert "model: dvc.yaml declares no such artifact; name one of: chargpt" in refused("v1.0.0", "--name", "model")
    assert "not on the remote: artifacts/hf, " in refused("v1.0.0")
    run("dvc", "push")
    (repo / "notes.txt").write_text("")
    assert "git does not know notes.txt; commit them, move them, or name them in .gitignore" in refused("v1.0.0")
    (repo / "notes.txt").unlink()
    (repo / "README.md").write_text("")
    assert "uncommitted changes in README.md" in refused("v1.0.0")
    pipeline = (repo / "dvc.yaml").read_text()
    for damaged in ("", "7", "artifacts: 7", "{", "\xa0: [", "artifacts: !!python/name:os.system {}"):
        (repo / "dvc.yaml").write_text(damaged)
        assert len(refused("v1.0.0").splitlines()) == 1
        done = run("chargpt", "check", check=False)
        assert done.returncode == 1 and "type: git checkout dvc.yaml" in done.stdout + done.stderr, damaged
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
