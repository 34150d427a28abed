"""`chargpt sweep` at toy size, with real workers, kills included."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from chargpt.errors import ChargptError
from tests.conftest import SIGNED, commit, environment_of, free_ports, set_value

plan = pytest.importorskip("chargpt.sweep.plan")
pytest.importorskip("optuna", reason="optuna is not installed: pip install -e .[sweep]")
pytest.importorskip("submitit", reason="submitit is not installed: pip install -e .[sweep]")

PLAN: dict[str, Any] = {
    "name": "toy",
    "trials": 3,
    "workers": 2,
    "space": {"lr": {"low": 0.003, "high": 0.05, "log": True}, "n_layer": [1, 2]},
    "sampler": {"TPESampler": {"seed": 1}},
}


def write(path: Path, **changes: Any) -> Path:
    with path.open("w") as file:
        YAML().dump(PLAN | changes, file)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "A b"},
            "name is 'A b'; it must be up to 41 of a-z, 0-9 and -, a letter first; look in docs/sweeps.md",
        ),
        ({"trials": None}, "trials or minutes must say when the sweep ends"),
        ({"trials": 0}, "trials is 0; it must be a whole number, >= 1"),
        ({"nope": 1}, "unknown key 'nope'; the keys are name, trials"),
        ({"space": {}}, r"space is \{\}; it must be at least one parameter, each with \{low"),
        ({"space": {"learning_rate": [1]}}, "learning_rate is no parameter; use those of params.yaml"),
        ({"space": {"lr": {"low": 0.0, "high": 1.0}}}, "lr is 0.0; it must be a number, > 0, <= 10"),
        ({"space": {"n_layer": {"low": 1, "high": 2.5}}}, "n_layer is 2.5; it must be a whole number"),
        ({"space": {"lr": {"low": 0.1, "high": 0.01}}}, "space.lr: low must be below high"),
        ({"space": {"n_layer": {"low": 1, "high": 4, "step": 0.5}}}, "space.n_layer: step must be a whole number"),
        ({"fixed": {"n_head": 3}}, "n_head"),
        ({"fixed": {"max_iters": 20}}, "warmup_iters=40 is more than max_iters=20"),
        (
            {"space": {"lr": {"low": 0.1, "high": 0.2, "log": True, "step": 0.1}}},
            "log needs a low above 0, and no step",
        ),
        ({"space": {"optimizer": ["sgd"]}}, "optimizer is 'sgd'; it must be one of muon, adamw"),
        ({"fixed": {"max_iters": -1}}, "max_iters is -1; it must be a whole number"),
        ({"fixed": {"lr": 0.1}}, "lr is in space and in fixed; keep only one of them"),
        ({"sampler": "NopeSampler"}, "sampler is 'NopeSampler'; try one of .*TPESampler"),
        ({"sampler": {"TPESampler": {"nope": 1}}}, "sampler TPESampler: .*nope.*; look in Optuna's documentation"),
        ({"pruner": "BaseSampler"}, "pruner is 'BaseSampler'; try one of .*MedianPruner"),
        ({"pruner": "MedianPruner", "objective": "perplexity"}, "the objective must be val_loss"),
        ({"space": {"lr": {"low": 1}}}, r"space.lr is \{'low': 1\}; it must be \{low: ..., high: ...\} with numbers"),
        ({"space": {"lr": []}}, r"space.lr is \[\]; it must be .* or a list of values"),
        ({"pruner": None}, "pruner is None; it must be a name of Optuna's, perhaps with arguments; NopPruner for none"),
        ({"space": {1: [2]}}, "space.1: 1 is no parameter; use those of params.yaml"),
        ({"space": {None: [2]}}, "space.None: .* is no parameter"),
        ({"sampler": {"TPESampler": {}, "RandomSampler": {}}}, "sampler is .*; it must be a name of Optuna's, perhaps"),
        ({"sampler": {"GridSampler": {"search_space": 3}}}, "sampler GridSampler: .*; look in Optuna's documentation"),
        (
            {"sampler": {"TPESampler": {"n_startup_trials": "many"}}},
            "TPESampler fails with this space: .*; look in Opt",
        ),
        (
            {"sampler": {"PartialFixedSampler": {"fixed_params": {"lr": 0.01}, "base_sampler": "TPESampler"}}},
            "PartialFixedSampler fails with this space: ",
        ),
        ({"space": {"lr": {"low": 0.1, "high": 0.2, "step": 1e-320}}}, "TPESampler fails with this space: "),
        ({"fixed": {"prompt": "a\0"}}, "prompt holds the character 0, which no command can be given; leave it out"),
        ({"direction": "up"}, "direction is 'up'; it must be minimize or maximize"),
    ],
)
def test_a_plan_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ChargptError, match=message):
        plan.load_plan(write(tmp_path / "sweep.yaml", **changes))


def test_values_reach_dvc_as_they_are() -> None:
    made = plan.Plan(**PLAN | {"fixed": {"beta2": 0.987654321}})
    assert plan.overrides(made, {"lr": 0.0123456789, "n_layer": 2}) == [
        "beta2=0.987654321",
        "lr=0.0123457",
        "n_layer=2",
    ]
    assert plan.overrides(made, {"lr": 0.04999999999}) == ["beta2=0.987654321", "lr=0.05"]


def test_whole_bounds_of_a_number_that_need_not_be_whole() -> None:
    space = {"weight_decay": {"low": 0, "high": 1}, "n_layer": {"low": 1, "high": 3}}
    made = plan.distributions(plan.Plan(**PLAN | {"space": space}))
    assert {name: type(values).__name__ for name, values in made.items()} == {
        "weight_decay": "FloatDistribution",
        "n_layer": "IntDistribution",
    }


def test_a_grid_is_walked_once() -> None:
    """Each trial makes its sampler anew."""
    import optuna

    grid = {"GridSampler": {"search_space": {"n_layer": [1, 2, 3, 4]}, "seed": 5}}
    study = optuna.create_study()
    seen = []
    for number in range(4):
        study.sampler = plan.make_engine("samplers", grid, seed_plus=number)
        trial = study.ask()
        seen.append(trial.suggest_categorical("n_layer", [1, 2, 3, 4]))
        with contextlib.suppress(RuntimeError):
            study.tell(trial, 0.0)
    assert sorted(seen) == [1, 2, 3, 4]


class Project:
    """A toy project with a bare repository as origin."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.home = folder / "home"
        self.folder = self.home / ".dvc/tmp/sweeps/toy"
        self.environment = environment_of(folder) | SIGNED
        subprocess.run(["git", "clone", "-q", str(template), str(self.home)], check=True)
        # the template's results, so that data is prepared and only trainings are new
        subprocess.run(["cp", "-r", str(template / ".dvc/cache"), str(self.home / ".dvc/cache")], check=True)
        subprocess.run(["git", "clone", "-q", "--bare", str(self.home), str(folder / "origin.git")], check=True)
        self("git", "remote", "set-url", "origin", str(folder / "origin.git"))
        self("git", "fetch", "-q", "origin")

    def plan(self, **changes: Any) -> None:
        write(self.home / "mine.yaml", **changes)

    def publish(self, **values: Any) -> None:
        """Change params.yaml, commit and push."""
        set_value(self.home / "params.yaml", **values)
        commit(self.home, "values")
        self("git", "push", "-q", "origin", "HEAD")

    def __call__(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, cwd=self.home, env=self.environment, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def trains_again(self, name: str) -> None:
        """A training without interruption gives the bytes of the experiment's model."""
        self("git", "checkout", "-q", "--", ".")
        self("dvc", "exp", "apply", name)
        model = self.home / "artifacts/model.safetensors"
        there = model.read_bytes()
        model.unlink()
        self(sys.executable, "-m", "stages", "train")
        assert model.read_bytes() == there

    def shown(self) -> dict[str, str]:
        """Trial to outcome, as the sweep tells them."""
        lines = self("chargpt", "sweep", "mine.yaml").stdout.splitlines()
        return {line.split(":")[0]: line.split(": ")[-1] for line in lines if line.startswith("toy-")}


@pytest.fixture
def project(tmp_path: Path, template: Path) -> Project:
    return Project(tmp_path, template)


@pytest.mark.system
@pytest.mark.timeout(600)
def test_trials_are_experiments_at_home(project: Project, tmp_path: Path) -> None:
    """Each with its parameters, applied with one command; a second call adds trials only if the budget grew."""
    project.plan(trials=8)
    outcomes = project.shown()
    assert set(outcomes) == {f"toy-{i}" for i in range(8)}
    assert all(re.fullmatch(r"val_loss \d\.\d{6}", outcome) for outcome in outcomes.values()), outcomes
    table = project("dvc", "exp", "show", "--csv").stdout
    for name, outcome in outcomes.items():
        assert float(outcome.split()[1]) == pytest.approx(float(re.search(rf"{name},.*?,.*?,.*?,([\d.]+)", table)[1]))  # type: ignore[index]
    best = min(outcomes, key=lambda name: outcomes[name])
    logs = {path.name: path.read_text() for path in project.folder.glob("toy-*.log")}
    assert project.shown() == outcomes  # nothing is repeated
    assert {path.name: path.read_text() for path in project.folder.glob("toy-*.log")} == logs
    project("dvc", "exp", "apply", best)
    assert (
        f'"val_loss": {outcomes[best].split()[1].rstrip("0")}' in (project.home / "metrics/evaluate.json").read_text()
    )
    page = tmp_path / "page.html"
    project("chargpt", "sweep", "mine.yaml", "--report", str(page))
    text = page.read_text()
    assert text.count("<svg") >= 3 and all(name in text for name in outcomes) and "http://" not in text.split("<svg")[0]
    # the plan of a sweep that has begun: the budget may grow, the space may not
    project("git", "checkout", "-q", "--", ".")
    for slot in project.folder.glob("slots/*.intact"):  # as a kill at a bad moment leaves the clones
        slot.unlink()
        broken = slot.with_suffix("")
        (broken / ".git/index.lock").touch()
        (broken / "params.yaml").write_text("")
        (broken / "dvc.lock").write_text("{")
        (broken / ".dvc/tmp/exps/rwlock").write_text("")
    with (project.folder / "journal.log").open("a") as file:  # and a crash of the machine the journal
        file.write('{"op_code": 4, "wor')
    project.plan(trials=9)
    assert set(project.shown()) == {f"toy-{i}" for i in range(9)}
    project.plan(space={"lr": [0.1]})
    done = project("chargpt", "sweep", "mine.yaml", check=False)
    assert done.returncode == 1 and "sweep toy: space changed since its first trial" in done.stderr
    # the names are taken, and what a report needs is not there
    shutil.move(project.folder, tmp_path / "moved")
    done = project("chargpt", "sweep", "mine.yaml", check=False)
    taken = "has an experiment toy-0 already; give the sweep another name"
    assert (done.returncode, done.stderr) == (1, f"error: origin {taken}\nerror: this project {taken}\n"), done.stderr
    done = project("chargpt", "sweep", "mine.yaml", "--report", str(page), check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "error: sweep toy: it has no trial yet; type: chargpt sweep mine.yaml\n",
    )
    assert not project.folder.exists()
    journal = tmp_path / "moved/journal.log"
    with journal.open("a") as file:
        file.write('{"a": 1}\n')
    done = project("chargpt", "trial", str(journal.parent), check=False)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {journal}: a damaged line"), done.stderr


@pytest.mark.system
def test_failures_and_pruning(project: Project) -> None:
    """A trial that cannot run says why, and the others go on; a pruner stops trainings by their curve."""
    project.plan(space={"n_head": [2, 3]}, sampler="BruteForceSampler", trials=2, workers=1)
    outcomes = project.shown()
    assert sorted(outcome.split()[0] for outcome in outcomes.values()) == ["look", "val_loss"] or any(
        "n_embd=8 is not a multiple of n_head=3" in path.read_text() for path in project.folder.glob("toy-*.log")
    )
    assert sum(outcome.startswith("val_loss") for outcome in outcomes.values()) == 1
    # an origin that cannot be reached is no fault of the trial, which then goes on
    away = project.home.parent / "away.git"
    project.plan(name="away", space={"lr": [0.01]}, sampler="BruteForceSampler", trials=1, workers=1)
    with (project.home.parent / "out").open("w") as out:
        process = subprocess.Popen(
            ["chargpt", "sweep", "mine.yaml"], cwd=project.home, env=project.environment, stdout=out, stderr=out
        )
        while not (project.home / ".dvc/tmp/sweeps/away").exists():
            time.sleep(0.01)
        (project.home.parent / "origin.git").rename(away)
        assert process.wait(200) == 1
    said = (project.home.parent / "out").read_text()
    assert re.search(r"error: a worker failed: fatal: .*origin.git.* look in ", said), said
    away.rename(project.home.parent / "origin.git")
    assert re.search("^away-0: .*: val_loss", project("chargpt", "sweep", "mine.yaml").stdout, re.MULTILINE)
    project.publish(max_iters=100_000)
    project.plan(name="pruned", pruner={"ThresholdPruner": {"upper": 0.1}}, trials=1, workers=1)
    done = project("chargpt", "sweep", "mine.yaml", check=False)
    assert done.returncode == 1 and re.search(r"\npruned-0: lr .*: pruned\n$", done.stdout), done.stdout
    assert done.stderr == "error: no trial was completed; look above for the reasons\n"


@pytest.mark.system
def test_refused_before_it_starts(project: Project) -> None:
    project.plan()

    def said() -> str:
        done = project("chargpt", "sweep", "mine.yaml", check=False)
        assert done.returncode == 1 and done.stdout == ""
        assert not project.folder.exists()
        return done.stderr

    (project.home / "chargpt/new.py").write_text("")
    assert said() == (
        "error: chargpt/new.py: not known to git, so no trial would have it; run: git add chargpt/new.py\n"
    )
    (project.home / "chargpt/new.py").unlink()
    set_value(project.home / "params.yaml", lr=0.02)
    assert said().startswith("error: edits that are not committed, so no trial would have them; type: git commit")
    commit(project.home, "lr")
    assert said().startswith("error: the present commit is not in origin, so no trial could fetch it; type: git push")
    project("git", "push", "-q", "origin", "HEAD")
    project("dvc", "remote", "add", "--local", "-d", "near", "store")
    assert said().startswith("error: the DVC remote near has a relative path")
    project("dvc", "config", "--local", "--unset", "core.remote")
    project("git", "remote", "remove", "origin")
    assert said().startswith("error: no git remote origin, from which trials take the project; type: git remote add")
    done = project("chargpt", "trial", str(project.home), check=False)
    assert done.returncode == 1 and "not the directory of a sweep" in done.stderr


@pytest.mark.system
def test_a_worker_that_fails_by_itself_ends_the_sweep(tmp_path: Path) -> None:
    """Otherwise another one would be started, and fail in the same way, for ever."""
    from submitit import LocalExecutor

    from chargpt.sweep.submit import require_no_error

    job = LocalExecutor(tmp_path).submit(int, "x")
    job.wait()
    with pytest.raises(ChargptError, match=rf"^a worker failed: ValueError: invalid literal .*; look in {tmp_path}$"):
        require_no_error(job, tmp_path)


def hear_ctrl_c() -> None:
    """For a process that is to be started: a test run in the background ignores Ctrl-C, and its children would too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def kill(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=60)


@pytest.mark.system
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["everything", "worker", "terminal"])
def test_nothing_is_lost(project: Project, how: str) -> None:
    """Kill all processes, only a worker, or press Ctrl-C: the same command goes on where each training was."""
    number = 2 if how == "everything" else 1
    project.publish(max_iters=2000, eval_interval=1000)
    project.plan(trials=number, workers=number)
    environment = project.environment | {"CHARGPT_SAVE_EVERY_S": "0.2"}
    with (project.home.parent / "out").open("w") as out:
        first = subprocess.Popen(
            ["chargpt", "sweep", "mine.yaml"],
            cwd=project.home,
            env=environment,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=hear_ctrl_c,
        )
    states = project.folder / "slots"
    deadline = time.monotonic() + 200
    while len(list(states.glob("*/.dvc/tmp/chargpt/*/*.safetensors"))) < number:
        assert time.monotonic() < deadline and first.poll() is None, (project.home.parent / "out").read_text()
        time.sleep(0.1)
    family = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
    if how == "everything":
        kill(family, signal.SIGKILL)
        first.wait()
    elif how == "worker":
        kill([process for process in family[1:] if "submitit" in " ".join(process.cmdline())], signal.SIGKILL)
        assert first.wait(300) == 0
    else:
        os.killpg(first.pid, signal.SIGINT)
        assert first.wait(60) == 130
        assert not [process for process in family if process.is_running()]
    outcomes = project.shown()
    assert set(outcomes) == {f"toy-{i}" for i in range(number)}
    assert all(outcome.startswith("val_loss") for outcome in outcomes.values()), outcomes
    if how != "worker":  # there, DVC went on without its worker
        for name in outcomes:
            assert "continuing at step" in (project.folder / f"{name}.log").read_text()
    if how == "everything":
        project.trains_again("toy-0")


SLURM = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
MpiDefault=none
ProctrackType=proctrack/linuxproc
ReturnToService=2
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdSpoolDir={folder}
StateSaveLocation={folder}
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SwitchType=switch/none
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Slurm of one node, on this machine; the directory of its files."""
    programs = ["munged", "slurmctld", "slurmd"]
    if not all(shutil.which(name) for name in programs) or os.geteuid():
        pytest.skip("Slurm is not installed, or this is not root: apt-get install slurm-wlm munge")
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    host = socket.gethostname().split(".")[0]
    about = {"host": host, "user": "root", "folder": folder, "cores": os.cpu_count(), "ports": free_ports(2)}
    (folder / "slurm.conf").write_text(SLURM.format(**about))
    key = folder / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    files = {"--key-file": "key", "--socket": "munge.sock", "--pid-file": "munge.pid", "--log-file": "munge.log"}
    files["--seed-file"] = "munge.seed"
    munged = ["munged", "--force", *(f"{option}={folder / name}" for option, name in files.items())]
    for command in (munged, ["slurmctld"], ["slurmd"]):
        subprocess.run(command, check=True)
    deadline = time.monotonic() + 60
    while "idle" not in subprocess.run(["sinfo"], capture_output=True, text=True).stdout:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    yield folder
    subprocess.run(["scancel", "--user=root"])
    for name in ("slurmd", "slurmctld", "munge"):
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGTERM)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.system
@pytest.mark.timeout(400)
def test_slurm_with_a_time_limit_a_cancelled_job_and_a_killed_daemon(project: Project, slurm: Path) -> None:
    """Before its time is over, a job saves its training and is queued again. A new job goes on if it is cancelled.

    A node's daemon that dies and starts again loses no job. The model has the bytes of an uninterrupted training.
    """
    project.environment["SLURM_CONF"] = os.environ["SLURM_CONF"]
    project.publish(max_iters=16_000, eval_interval=8_000)
    limits = {"slurm_partition": "all", "timeout_min": 1, "slurm_signal_delay_s": 20, "cpus_per_task": 1}
    project.plan(executor="slurm", trials=1, workers=1, slurm=limits)
    log = project.folder / "toy-0.log"

    def wait(for_what: str) -> None:
        deadline = time.monotonic() + 200
        while not log.exists() or for_what not in log.read_text():
            assert time.monotonic() < deadline and first.poll() is None, log.read_text() if log.exists() else ""
            time.sleep(0.2)

    def start() -> subprocess.Popen[bytes]:
        with (project.home.parent / "out").open("w") as out:
            return subprocess.Popen(
                ["chargpt", "sweep", "mine.yaml"],
                cwd=project.home,
                env=project.environment,
                stdout=out,
                stderr=out,
                preexec_fn=hear_ctrl_c,
            )

    first = start()
    wait("train: stopped (SIG")
    deadline = time.monotonic() + 60
    while subprocess.run(["squeue", "-h", "-o", "%i %T"], capture_output=True, text=True).stdout != "1 PENDING\n":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 130
    subprocess.run(["scancel", "1"], check=True)
    project.plan(executor="slurm", trials=1, workers=1, slurm=limits | {"timeout_min": 10})
    first = start()
    wait("continuing at step")
    os.kill(int((slurm / "slurmd.pid").read_text()), signal.SIGKILL)
    time.sleep(2)
    subprocess.run(["slurmd"], check=True)
    assert first.wait(300) == 0
    outcomes = project.shown()
    assert set(outcomes) == {"toy-0"} and outcomes["toy-0"].startswith("val_loss"), outcomes
    assert "continuing at step" in log.read_text()
    project.trains_again("toy-0")
