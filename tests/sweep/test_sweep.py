"""`chargpt sweep` at toy size, with real workers, kills included."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import importlib
import json
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
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from chargpt.errors import ChargptError
from tests.conftest import SIGNED, chargpt, commit, environment_of, free_ports, set_value, until, write_params

pytest.importorskip("optuna", reason="optuna is not installed: pip install -e .[sweep]")
submitit = pytest.importorskip("submitit", reason="submitit is not installed: pip install -e .[sweep]")
from optuna.trial import Trial, TrialState  # noqa: E402

from chargpt import sweep as sweep_package  # noqa: E402
from chargpt.sweep import plan, study, submit, trial  # noqa: E402
from chargpt.sweep.page import write_page  # noqa: E402

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
        ({"name": "A b"}, "name is 'A b'; it must be a letter, then up to 40 of a-z, 0-9 and -$"),
        ({"trials": None}, "neither trials nor minutes limits the sweep; set one of them"),
        ({"trials": 0}, "trials is 0; it must be a whole number, >= 1, or null$"),
        ({"nope": 1}, "unknown key nope: did you mean name"),
        ({"space": {"lr": {"low": 1}}}, r"space is \{'lr': \{'low': 1\}\}; it must be one or more parameters"),
        ({"space": {"learning_rate": [1]}}, "unknown key learning_rate: the keys are corpus, "),
        ({"space": {"lr": {"low": 0.0, "high": 1.0}}}, "lr is 0.0; it must be a number, > 0, <= 10"),
        ({"space": {"n_layer": {"low": 1, "high": 2.5}}}, "n_layer is 2.5; it must be "),
        ({"space": {"optimizer": ["sgd"]}}, "optimizer is 'sgd'; it must be one of muon, adamw"),
        ({"fixed": {"lr": 0.1}}, "lr is in space and in fixed; keep only one of them"),
        ({"pruner": None}, "pruner is None; it must be a name of Optuna's, or .*"),
        ({"pruner": "MedianPruner", "objective": "perplexity"}, "set objective to val_loss"),
        # in Optuna's words
        ({"space": {"lr": {"low": 0.1, "high": 0.01}}}, "Optuna: `low <= high` must hold, .*; see Optuna's doc"),
        ({"sampler": "NopeSampler"}, "Optuna: module 'optuna.samplers' has no attribute 'NopeSampler'"),
        ({"sampler": {"TPESampler": {"nope": 1}}}, "Optuna: .*TPESampler.* unexpected keyword argument 'nope'"),
    ],
)
def test_invalid_plans_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ChargptError, match=message):
        plan.load_plan(write(tmp_path / "sweep.yaml", **changes))


def test_float_parameters_with_integer_bounds_are_searched_as_floats() -> None:
    space = {"weight_decay": {"low": 0, "high": 1}, "n_layer": {"low": 1, "high": 3}}
    made = plan.distributions(plan.Plan(**PLAN | {"space": space}))
    assert [type(values).__name__ for values in made.values()] == ["FloatDistribution", "IntDistribution"]


def make_sweep(tmp_path: Path, **changes: Any) -> study.Sweep:
    return study.create(tmp_path / ".dvc/tmp/sweeps/toy", plan.Plan(**PLAN | changes), "0" * 40)


def begin(sweep: study.Sweep) -> Trial:
    """A trial whose process dies at once."""
    with study.next_trial(sweep) as taken:
        assert taken
        return taken[0]


def test_a_grid_is_searched_once(tmp_path: Path) -> None:
    """Each trial makes its sampler anew."""
    sampler = {"GridSampler": {"search_space": {"n_layer": [1, 2, 3, 4]}, "seed": 5}}
    folder = make_sweep(tmp_path, space={"n_layer": [1, 2, 3, 4]}, sampler=sampler, trials=4).folder
    seen = []
    for _ in range(4):
        sweep = study.open_sweep(folder)
        begun = begin(sweep)
        seen.append(begun.params["n_layer"])
        plan.record(sweep.study, begun, TrialState.COMPLETE, 0.0)
    assert sorted(seen) == [1, 2, 3, 4]
    with study.next_trial(sweep) as taken:
        assert taken is None


def test_the_budget_in_minutes_is_the_same_in_every_time_zone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna records local times without their zone: an hour would pass, or come back, at the end of summer time."""
    sweep = make_sweep(tmp_path, trials=None, minutes=30)
    for zone in ("UTC-5", "UTC", "UTC+5"):  # the first trial begins in UTC-5
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        assert begin(sweep).number == 0
        assert not study.spent(sweep), zone
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 31 * 60)
    assert study.spent(sweep)
    monkeypatch.undo()
    time.tzset()


def test_every_unfinished_trial_gets_a_worker_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if no new trial may begin."""
    sweep = make_sweep(tmp_path, trials=2)
    with study.next_trial(sweep) as first, study.next_trial(sweep) as second:
        assert first and second
        unfinished = [first[0], second[0]]

    def start(*_: object) -> SimpleNamespace:
        plan.record(sweep.study, unfinished.pop(), TrialState.PRUNED)
        return SimpleNamespace(done=lambda: True, exception=lambda: None)

    monkeypatch.setattr(submit, "_start", start)
    monkeypatch.setattr(submit, "POLL_S", "both are started before the first pause")
    submit.run(sweep, lambda line: None)
    assert not unfinished


def test_a_trial_has_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks is named, and not taken for a lock that another process holds."""
    sweep = make_sweep(tmp_path, trials=2)
    with study.next_trial(sweep) as first, study.next_trial(sweep) as second, study.next_trial(sweep) as third:
        assert first and second and (first[0].number, second[0].number, third) == (0, 1, None)
        assert study.busy(sweep) == 2
    assert study.busy(sweep) == 0 and begin(sweep).number == 0
    unfinished = sweep.running()
    plan.record(sweep.study, begin(sweep), TrialState.COMPLETE, 0.0)  # by another process, at this moment
    monkeypatch.setattr(study.Sweep, "running", lambda _: unfinished)
    assert begin(sweep).number == 1

    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    message = r"ask\.lock: file locks: Function not implemented; move the project to another file system$"
    with pytest.raises(ChargptError, match=message):
        begin(sweep)


def test_a_half_written_curve_does_not_end_a_trial(tmp_path: Path) -> None:
    """Over NFS, a reader may see a part of a row, or zeros in place of it."""
    sweep = make_sweep(tmp_path)
    begun, curve = begin(sweep), tmp_path / "curves.tsv"
    reported = trial._report(begun, curve, 0)
    for second_row, rows in (("2\t1.0\t1.", 1), ("\0\0\0\n", 1), ("2\t1.0\t1.5\t0.1\n", 2)):
        curve.write_text("step\ttrain_loss\tval_loss\tlr\n1\t2.0\t2.5\t0.1\n" + second_row)
        reported = trial._report(begun, curve, reported)
        assert reported == rows
    assert sweep.running()[0].intermediate_values == {1: 2.5, 2: 1.5}


def test_a_token_in_the_url_of_origin_is_neither_logged_nor_stored(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    url = "https://user:secret@127.0.0.1:9/x.git"
    subprocess.run(["git", "-C", str(tmp_path), "remote", "add", "origin", url], check=True)
    assert trial.origin(tmp_path) == url
    log = sweep.folder / "toy-0.log"
    with pytest.raises(ChargptError) as raised:
        trial._run([sys.executable, "-c", f"raise SystemExit('fatal: no {url}')"], tmp_path, log)
    assert str(raised.value) == f"fatal: no https://127.0.0.1:9/x.git; see {log}"
    assert not [path for path in sweep.folder.rglob("*") if path.is_file() and "secret" in path.read_text()]


def test_the_page_shows_every_trial(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, trials=5)
    for number in range(5):
        begun = begin(sweep)
        begun.set_user_attr("error", "not <enough>")
        plan.record(sweep.study, begun, *((TrialState.COMPLETE, 3.0 - number) if number < 4 else (TrialState.FAIL,)))
    write_page(sweep, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text.count("<svg") == 3 and "http://" not in text.split("<svg")[0]
    assert re.findall(r"<td>(toy-\d)</td>", text) == ["toy-3", "toy-2", "toy-1", "toy-0", "toy-4"]
    assert "dvc exp apply toy-3" in text and "<td>not &lt;enough&gt;</td>" in text


def test_a_missing_package_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ChargptError, match=r"^submitit is not installed; run: pip install -c constraints.txt -e "):
        importlib.reload(sweep_package)


def test_missing_slurm_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ChargptError, match=r"^slurm: .*srun.*; see submitit's documentation$"):
        submit.make_executor(make_sweep(tmp_path, executor="slurm"))


STAGE = """
import json, pathlib, time
from ruamel.yaml import YAML
params = YAML(typ="safe").load(pathlib.Path("params.yaml").read_text())
if params["n_head"] == 3:
    raise SystemExit("error: n_embd=8 is not a multiple of n_head=3")
pathlib.Path("metrics").mkdir(exist_ok=True)
pathlib.Path("metrics/curves.tsv").write_text("step\\ttrain_loss\\tval_loss\\tlr\\n1\\t2.0\\t2.5\\t0.1\\n")
time.sleep(600 if params["max_iters"] == 7 else 0)
pathlib.Path("metrics/evaluate.json").write_text(json.dumps({"val_loss": round(params["lr"] * params["n_layer"], 6)}))
pathlib.Path("model").write_text(str(params))
"""
PIPELINE = """
stages:
  train:
    cmd: python stage.py
    deps: [text]
    params: [lr, n_layer, n_head, max_iters]
    outs: [model]
    metrics: [{metrics/evaluate.json: {cache: false}}]
"""


@pytest.fixture
def small(tmp_path: Path) -> Project:
    """A project of one stage, which takes no time, and with `max_iters: 7` does not end. DVC keeps its text."""
    made = tmp_path / "made"
    made.mkdir()
    write_params(made / "params.yaml")
    (made / "stage.py").write_text(STAGE)
    (made / "dvc.yaml").write_text(PIPELINE)
    (made / ".gitignore").write_text("/model\n/metrics/curves.tsv\n")
    environment = environment_of(tmp_path)
    (made / "text").write_text("text")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "add", "-q", "text"], ["dvc", "repro", "-q"]):
        subprocess.run(command, cwd=made, env=environment, check=True)
    commit(made, "start")
    return Project(tmp_path, made)


class Project:
    """A clone of a project, with a bare repository as origin."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.home = folder / "home"
        self.folder = self.home / ".dvc/tmp/sweeps/toy"
        self.environment = environment_of(folder) | SIGNED
        subprocess.run(["git", "clone", "-q", str(template), str(self.home)], check=True)
        # the template's results, so that data is prepared and only trainings are new
        shutil.copytree(template / ".dvc/cache", self.home / ".dvc/cache")
        subprocess.run(["git", "clone", "-q", "--bare", str(self.home), str(folder / "origin.git")], check=True)
        self("git", "remote", "set-url", "origin", str(folder / "origin.git"))

    def plan(self, **changes: Any) -> None:
        write(self.home / "mine.yaml", **changes)

    def __call__(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, cwd=self.home, env=self.environment, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start a sweep in a session of its own; `output` is what it prints."""
        self.output = self.home.parent / "out"
        with self.output.open("w") as out:
            return subprocess.Popen(
                ["chargpt", "sweep", "mine.yaml"],
                cwd=self.home,
                env=self.environment | environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
                # a test run in the background ignores Ctrl-C, and its children would too
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

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
        """Trial to outcome, as the sweep reports them."""
        lines = self("chargpt", "sweep", "mine.yaml").stdout.splitlines()
        return {line.split(":")[0]: line.split(": ")[-1] for line in lines if line.startswith("toy-")}


@pytest.fixture
def project(tmp_path: Path, template: Path) -> Project:
    return Project(tmp_path, template)


@pytest.mark.system
@pytest.mark.timeout(600)
def test_trials_are_experiments_at_home(small: Project, tmp_path: Path) -> None:
    """Each with its parameters, applied with one command; a second call adds trials only if the budget grew."""
    small.plan(trials=2)
    small("dvc", "remote", "add", "--local", "-d", "private", str(tmp_path / "private"))
    outcomes = small.shown()
    assert len([path for path in (tmp_path / "private").rglob("*") if path.is_file()]) == 4  # the text and 3 models
    assert set(outcomes) == {"toy-0", "toy-1"}
    assert all(re.fullmatch(r"val_loss \d\.\d{6}", outcome) for outcome in outcomes.values()), outcomes
    table = csv.DictReader(small("dvc", "exp", "show", "--csv").stdout.splitlines())
    losses = {row["Experiment"]: row["val_loss"] for row in table}
    for name, outcome in outcomes.items():
        assert float(outcome.split()[1]) == pytest.approx(float(losses[name]))
    best = min(outcomes, key=lambda name: outcomes[name])
    logs = {path: path.read_text() for path in small.folder.glob("toy-*.log")}
    small("dvc", "exp", "apply", best)
    applied = json.loads((small.home / "metrics/evaluate.json").read_text())
    assert applied["val_loss"] == float(outcomes[best].split()[1])
    # the plan of a sweep that has begun: the budget may grow, the space may not
    small("git", "checkout", "-q", "--", ".")
    assert not [path for path in (small.folder / "clones").iterdir() if path.is_dir()]
    with (small.folder / "journal.log").open("a") as file:  # as a crash of the machine leaves it
        file.write('{"op_code": 4, "wor')
    small.plan(trials=3)
    grown = small.shown()
    assert grown.items() > outcomes.items() and grown.keys() - outcomes == {"toy-2"}
    assert all(path.read_text() == log for path, log in logs.items()), "nothing is repeated"
    small.plan(space={"lr": [0.1]})
    done = small("chargpt", "sweep", "mine.yaml", check=False)
    assert done.returncode == 1 and "sweep toy: space changed after trial 0; use another name" in done.stderr
    # the names are taken, and what a report needs is not there
    shutil.move(small.folder, tmp_path / "moved")
    done = small("chargpt", "sweep", "mine.yaml", check=False)
    assert done.returncode == 1
    assert done.stderr == "error: origin or this project already has an experiment toy-0; give the sweep another name\n"
    done = small("chargpt", "sweep", "mine.yaml", "--report", "page.html", check=False)
    assert done.returncode == 1 and "not the directory of a sweep; run: chargpt sweep" in done.stderr
    assert not small.folder.exists()
    journal = tmp_path / "moved/journal.log"
    with journal.open("a") as file:
        file.write('{"a": 1}\n')
    done = small("chargpt", "trial", str(journal.parent), check=False)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {journal}: is damaged"), done.stderr


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.timeout(600)
def test_failures_and_pruning(small: Project) -> None:
    """A trial that cannot run says why, and the others go on; a pruner stops trainings by their curve."""
    small.plan(space={"n_head": [2, 3]}, sampler="BruteForceSampler", trials=2, workers=1)
    outcomes = small.shown()
    assert sum(outcome.startswith("val_loss") for outcome in outcomes.values()) == 1
    logs = [path.read_text() for path in small.folder.glob("toy-*.log")]
    assert sum("n_embd=8 is not a multiple of n_head=3" in log for log in logs) == 1
    # an origin that cannot be reached is no fault of the trial, which is pushed later and does not train again
    away = small.home.parent / "away.git"
    small.plan(name="away", space={"lr": [0.01]}, sampler="BruteForceSampler", trials=1, workers=1)
    process = small.start()
    until((small.home / ".dvc/tmp/sweeps/away").exists)
    (small.home.parent / "origin.git").rename(away)
    assert process.wait(400) == 1
    output = small.output.read_text()
    assert re.search(r"error: a worker failed: .*origin.* see ", output), output
    away.rename(small.home.parent / "origin.git")
    assert re.search("^away-0: .*: val_loss", small("chargpt", "sweep", "mine.yaml").stdout, re.MULTILINE)
    assert (small.home / ".dvc/tmp/sweeps/away/away-0.log").read_text().count("Running stage 'train'") == 1
    pruner = {"ThresholdPruner": {"upper": 0.1}}
    small.plan(name="pruned", pruner=pruner, trials=1, workers=1, fixed={"max_iters": 7})
    done = small("chargpt", "sweep", "mine.yaml", check=False)
    assert done.returncode == 1 and re.search(r"\npruned-0: lr=.*: pruned\n$", done.stdout), done.stdout
    assert done.stderr == "error: no trial was completed; see the reasons above\n"


@pytest.mark.system
def test_what_would_make_every_trial_fail_is_refused(small: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    small.plan()
    for name, value in small.environment.items():
        monkeypatch.setenv(name, value)

    def refused(path: str = "mine.yaml") -> str:
        done = chargpt("sweep", path, cwd=small.home)
        assert done.returncode == 1 and done.stdout == "", done.stderr
        assert not small.folder.exists()
        return done.stderr

    (small.home / "chargpt").mkdir()
    (small.home / "chargpt/new.py").write_text("")
    assert refused().startswith("error: chargpt/new.py: not tracked by git, so experiments lack it; ")
    (small.home / "chargpt/new.py").unlink()
    set_value(small.home / "params.yaml", lr=0.02)
    assert refused() == (
        'error: params.yaml: not committed, so no trial would have the changes; run: git commit -a -m "..."\n'
    )
    commit(small.home, "lr")
    small("dvc", "remote", "add", "--local", "-d", "near", "store")
    shutil.copyfile(small.home / "mine.yaml", small.home.parent / "mine.yaml")
    for path in ("mine.yaml", "../mine.yaml"):
        assert refused(path).startswith("error: the DVC remote near has a relative path")
    small("dvc", "config", "--local", "--unset", "core.remote")
    small("dvc", "remote", "add", "--local", "-d", "gone", "/proc/nope")
    assert re.match("error: dvc push: ERROR: .*/proc/nope'; run: chargpt check\n$", refused())
    small("dvc", "config", "--local", "--unset", "core.remote")
    small.plan(objective="accuracy")
    assert "objective is accuracy; it must be a key of metrics/evaluate.json" in refused()
    small("git", "remote", "remove", "origin")
    small.plan()
    assert "No such remote 'origin'" in refused()
    done = chargpt("trial", str(small.home), cwd=small.home)
    assert done.returncode == 1 and "not the directory of a sweep" in done.stderr


@pytest.mark.system
def test_a_worker_that_fails_by_itself_ends_the_sweep(tmp_path: Path) -> None:
    """Otherwise another one would be started, and fail in the same way, for ever."""
    job = submitit.LocalExecutor(tmp_path).submit(int, "x")
    job.wait()
    with pytest.raises(ChargptError, match=rf"^a worker failed: ValueError: invalid literal .*; see {tmp_path}$"):
        submit.require_no_error(job, tmp_path)


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=60)


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["everything", "worker", "terminal"])
def test_nothing_is_lost(project: Project, how: str) -> None:
    """Kill all processes, only a worker, or press Ctrl-C: the same command goes on where each training was."""
    number = 2 if how == "everything" else 1
    project.plan(trials=number, workers=number, fixed={"max_iters": 2000, "eval_interval": 1000})
    first = project.start(CHARGPT_SAVE_EVERY_S="0.2")
    checkpoints = "clones/*.checkpoints/*/*.safetensors"
    until(lambda: len(list(project.folder.glob(checkpoints))) == number, project.output.read_text)
    family = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
    if how == "everything":
        kill(family)
        first.wait()
    elif how == "worker":
        kill([process for process in family[1:] if "submitit" in " ".join(process.cmdline())])
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
AuthInfo=socket={folder}/munge.sock
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
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
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
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    munged = ["munged", "--force", f"--socket={folder}/munge.sock", *files]
    for command in (munged, ["slurmctld"], ["slurmd"]):
        subprocess.run(command, check=True)
    until(lambda: "idle" in subprocess.run(["sinfo"], capture_output=True, text=True).stdout)
    yield folder
    subprocess.run(["scancel", "--user=root"])
    for name in ("slurmd", "slurmctld", "munge"):
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGTERM)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.timeout(400)
def test_slurm_with_a_time_limit_a_cancelled_job_and_a_killed_daemon(project: Project, slurm: Path) -> None:
    """Before its time is over, a job saves its training and is queued again. A new job goes on if it is cancelled.

    A node's daemon that dies and starts again loses no job. The model has the bytes of an uninterrupted training.
    """
    project.environment["SLURM_CONF"] = os.environ["SLURM_CONF"]
    limits = {"slurm_partition": "all", "timeout_min": 1, "slurm_signal_delay_s": 20, "cpus_per_task": 1}
    about = {"executor": "slurm", "trials": 1, "workers": 1, "fixed": {"max_iters": 16_000, "eval_interval": 8_000}}
    project.plan(**about, slurm=limits)
    log = project.folder / "toy-0.log"

    def wait(for_what: str) -> None:
        until(lambda: log.exists() and for_what in log.read_text(), project.output.read_text)

    first = project.start()
    wait("train: stopped (SIG")
    queue = ["squeue", "-h", "-o", "%i %T"]
    until(lambda: subprocess.run(queue, capture_output=True, text=True).stdout == "1 PENDING\n")
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 130
    subprocess.run(["scancel", "1"], check=True)
    project.plan(**about, slurm=limits | {"timeout_min": 10})
    first = project.start()
    wait("continuing at step")
    os.kill(int((slurm / "slurmd.pid").read_text()), signal.SIGKILL)
    time.sleep(2)
    subprocess.run(["slurmd"], check=True)
    assert first.wait(300) == 0
    outcomes = project.shown()
    assert set(outcomes) == {"toy-0"} and outcomes["toy-0"].startswith("val_loss"), outcomes
    assert "continuing at step" in log.read_text()
    project.trains_again("toy-0")
