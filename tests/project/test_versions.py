"""What the page on versions prints is run as printed: versions from one clone to another directory, and the CI job."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from chargpt.model.file import read_model
from chargpt.project.params_file import load_params
from tests.conftest import Run, set_value
from tests.docs.pages import blocks

pytestmark = pytest.mark.system

Shell = Callable[[str, Path], str]


@pytest.fixture(scope="module")
def environment(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return environment | {"GITHUB_STEP_SUMMARY": str(tmp_path_factory.mktemp("ci") / "summary.md")}


@pytest.fixture(scope="module")
def bare(repo: Path, run: Run) -> Path:
    """A reproduced pipeline on branch `main`, and the bare repository that it is pushed to."""
    run("git", "branch", "-M", "main")
    bare = repo.parent / "bare.git"
    run("git", "clone", "-q", "--bare", str(repo), str(bare))
    run("git", "remote", "add", "origin", str(bare))
    return bare


@pytest.fixture(scope="module")
def shell(environment: dict[str, str], bare: Path) -> Shell:
    """Runs a block of commands as printed, but for addresses and characters that exist here."""
    places = {
        "https://example.org/team/chargpt.git": str(bare),
        "/srv/models": str(bare.parent / "models"),
        "ROMEO:": "9",
    }

    def shell(commands: str, folder: Path) -> str:
        for printed, here in places.items():
            commands = commands.replace(printed, here)
        done = subprocess.run(["bash", "-ec", commands], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, commands + done.stdout + done.stderr
        return done.stdout

    return shell


def test_a_version_travels(repo: Path, bare: Path, shell: Shell, tmp_path: Path) -> None:
    (remote,), (fetch, fetch_file) = blocks("docs/versions.md", "A remote"), blocks("docs/versions.md", "Fetch a model")
    publish = blocks("docs/versions.md")[0]
    assert publish == blocks("README.md", "Versions")[0]
    shell(remote, repo)
    assert "registered chargpt@v1.0.0" in shell(publish, repo)
    assert len(re.findall("^9.*", shell(fetch, tmp_path), re.MULTILINE)) >= 1
    shell(fetch_file, tmp_path)
    model = (repo / "artifacts/model.safetensors").read_bytes()
    assert (tmp_path / "model.safetensors").read_bytes() == model
    assert (tmp_path / "same.safetensors").read_bytes() == model


@pytest.mark.slow
def test_the_job_for_continuous_integration(repo: Path, bare: Path, run: Run, shell: Shell, tmp_path: Path) -> None:
    (job,) = YAML(typ="safe").load(blocks("docs/versions.md", "Continuous integration", "yaml")[0])["jobs"].values()
    steps = [step["run"] for step in job["steps"] if "run" in step]
    assert steps[0].startswith("pip install")
    assert job["steps"][0]["with"] == {"fetch-depth": 0}
    run("dvc", "push")
    run("git", "switch", "-q", "-c", "longer")
    run("dvc", "exp", "run", "-S", "max_iters=40")
    run("git", "commit", "-q", "-a", "-m", "longer")
    run("dvc", "push")
    run("git", "push", "-q", "origin", "longer")
    clone = tmp_path / "clone"
    shell(f"git clone -q {bare} {clone} && cd {clone} && git checkout -q --detach origin/longer", tmp_path)
    output = [shell(step, clone) for step in steps[1:]]
    assert any("val_loss" in text and "worse" not in text for text in output)
    summary = Path(shell("echo $GITHUB_STEP_SUMMARY", tmp_path).strip()).read_text()
    assert "| metrics/evaluate.json | val_loss |" in re.sub(" +", " ", summary)
    # it fails where it should: parameters without their run, and a worse model
    shell("sed -i 's/^lr: .*/lr: 0.01/' params.yaml && ! git diff --quiet", clone)
    with pytest.raises(AssertionError, match="dvc repro --dry"):
        shell(f"rm -rf artifacts && {steps[1]}", clone)  # as before `dvc pull`
    shell("git reset -q --hard && git checkout -q --detach origin/main && dvc pull -q", clone)
    with pytest.raises(AssertionError, match="worse than at origin/longer"):
        shell(steps[3].replace("origin/main", "origin/longer"), clone)


def test_the_other_kinds_of_remote_are_configured_as_printed(repo: Path, shell: Shell, tmp_path: Path) -> None:
    """Their servers are in test_remotes.py; Google's own login is not here."""
    for block in blocks("docs/versions.md", "Other kinds of remote"):
        lines = [line for line in block.splitlines() if not line.startswith(("pip install", "gcloud"))]
        shell("\n".join(lines).replace("remote add -d team", "remote add -d -f team"), repo)
        (repo / ".dvc/config.local").unlink(missing_ok=True)
    shell("git checkout .dvc/config", repo)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["-X", "ours"], ["-X", "theirs"]], ids=" ".join)
def test_merging(repo: Path, run: Run, shell: Shell, options: list[str]) -> None:
    """Each branch trained with another parameter; neither model is that of the merged parameters."""
    (command,) = blocks("docs/versions.md", "Merging")
    run("git", "reset", "-q", "--hard", "main")
    name = "".join(["seed", *options[1:]])
    for branch, key, value in ((name, "seed", 5), (f"{name}-lr", "lr", 0.0123)):
        run("git", "switch", "-q", "-c", branch, "main")
        set_value(repo / "params.yaml", **{key: value})
        run("dvc", "repro")
        run("git", "commit", "-q", "-a", "-m", key)
    merge = subprocess.run(
        ["git", "merge", "-q", "--no-edit", *options, name], cwd=repo, capture_output=True, text=True
    )
    assert "dvc.lock" in merge.stdout + merge.stderr or options, "git reports the conflict"
    shell(command if merge.returncode else command.splitlines()[0], repo)
    params = load_params(repo / "params.yaml")
    assert (params.seed, params.lr) == (5, 0.0123)
    trained = read_model(repo / "artifacts/model.safetensors").params
    assert (trained["seed"], trained["lr"]) == (5, 0.0123)
