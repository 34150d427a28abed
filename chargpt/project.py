"""What DVC leaves open: is all in order before work starts, did a metric get worse, may this become a version."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version
from ruamel.yaml import YAML

from chargpt.download import is_downloaded
from chargpt.errors import ChargptError, shown
from chargpt.files import numbers, read_json
from chargpt.git import ARTIFACT, METRICS, git, remedy, untracked_code
from chargpt.params import load_params


def problems() -> Iterator[str]:
    """What would go wrong later, one line each with what to type. Loads torch only if `device` names a GPU."""
    try:
        params = load_params()
    except ChargptError as error:
        yield str(error)
    else:
        try:
            is_downloaded(params.corpus)
        except ChargptError as error:
            yield str(error)
        if not Path(params.legacy_dir).is_dir():
            yield f"params.yaml: legacy_dir is {params.legacy_dir!r}, and there is no such directory"
        if params.device not in ("auto", "cpu"):
            from chargpt.device import pick_device

            try:
                pick_device(params.device)
            except ChargptError as error:
                yield str(error)
    python = shutil.which("python")
    if python is None or not os.path.samefile(Path(python).parent, Path(sys.executable).parent):
        found = f"is {python}" if python else "is not there"
        yield f"the stages call `python`, which {found}; type: . {Path(sys.prefix) / 'bin/activate'}"
    for line in importlib.metadata.requires("chargpt") or []:
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            version = _installed(wanted.name)
            if version is None or not wanted.specifier.contains(version, prereleases=True):
                yield f"{wanted.name} {version or 'is missing'}: chargpt needs {wanted}; type: pip install -e ."
    yield from _git_problems()


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_problems() -> Iterator[str]:
    if shutil.which("git") is None:
        yield "git is not installed; DVC needs it"
    elif git("rev-parse", "--git-dir") is None:
        yield (
            "no git repository: DVC refuses to run; type: git init && git add --all && git commit -m start"
            " (or, to run the pipeline only: dvc config --local core.no_scm true)"
        )
    else:
        if git("rev-parse", "--verify", "--quiet", "HEAD") is None:
            yield 'no commit yet: experiments need one; type: git add --all && git commit -m "start"'
        if git("var", "GIT_AUTHOR_IDENT") is None or not all(
            os.environ.get(f"GIT_AUTHOR_{key.upper()}") or git("config", f"user.{key}") for key in ("name", "email")
        ):
            yield (
                "git does not know who you are, so experiments and versions cannot be recorded; type:"
                ' git config user.name "Your Name" && git config user.email you@example.org'
            )
        if (git("rev-parse", "--is-shallow-repository") or "").strip() == "true":
            yield "a shallow clone: comparing with older versions fails; type: git fetch --unshallow --tags"
        if names := [shown(name) for name in untracked_code()]:
            yield f"{', '.join(names)}: not known to git, so experiments in copies lack it; {remedy(names)}"


def changed_stages() -> list[str]:
    """The stages that `dvc repro` would run now, without those that only depend on them. Raises ChargptError."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            return list(repo.status())
    except DvcException as error:
        raise ChargptError(_one_line(error)) from None


def compare(against: str | None, max_regression: float) -> tuple[str, list[tuple[str, float, float, bool]]]:
    """Each of the model's metrics at a revision and now, and whether it got worse; lower is better for all.

    against: any revision or experiment; None takes HEAD or, if nothing changed since, the commit before. Worse is more
    than `max_regression` above the old value, as a part of it. Returns the revision and (name, before, now, worse).
    Raises ChargptError if there is nothing to compare with.
    """
    now = numbers(read_json(METRICS)) if Path(METRICS).exists() else {}
    if not now:
        raise ChargptError(f"{METRICS}: no metrics here; run dvc repro")
    revision = against or ("HEAD" if now != _metrics("HEAD") else "HEAD~1")
    before = _metrics(revision)
    missing = before.keys() - now.keys()
    if missing or not before:
        what = f"{', '.join(sorted(missing))} missing" if missing else f"nothing at {revision}"
        raise ChargptError(f"{METRICS}: {what}; run dvc repro, or name a revision that has it with --against")
    return revision, [
        (name, old, now[name], not now[name] <= old + abs(old) * max_regression) for name, old in sorted(before.items())
    ]


def _metrics(revision: str) -> dict[str, float]:
    """The numbers in the metrics file at a revision."""
    import dvc.api

    try:
        return numbers(dvc.api.metrics_show(METRICS, rev=revision))
    except FileNotFoundError:
        return {}
    except Exception as error:  # DVC and git libraries raise all kinds for what is no revision
        raise ChargptError(
            f"{revision}: {_one_line(error)}; or in CI fetch the whole history (fetch-depth: 0)"
        ) from None


def release(version: str, name: str = ARTIFACT, message: str | None = None) -> str:
    """Register HEAD as a version of the model, with gto's annotated tag, which is returned.

    Raises ChargptError, and makes nothing, unless: dvc.yaml declares the name, the tree is clean, dvc.lock belongs to
    it, the remote holds every object, and the version is a new one.
    """
    try:
        number = Version(version.removeprefix("v"))
        if len(number.release) != 3:
            raise InvalidVersion
    except ValueError:  # InvalidVersion, or numbers longer than Python reads
        raise ChargptError(f"{version[:40]}: not a version; it must look like v1.2.0") from None
    declared = YAML(typ="safe").load(Path("dvc.yaml").read_text(encoding="utf-8")).get("artifacts", {})
    if name not in declared:
        raise ChargptError(f"{name}: dvc.yaml declares no such artifact; it has {', '.join(declared) or 'none'}")
    for problem in _git_problems():
        raise ChargptError(problem)
    if dirty := (git("status", "--porcelain") or "").splitlines():
        names = _few([line[3:] for line in dirty])
        raise ChargptError(f"uncommitted changes in {names}; commit them, so that the version names what you have")
    done = _dvc("repro", "--dry", "--allow-missing")
    if done.returncode or "Running stage" in done.stdout:
        raise ChargptError(
            "dvc.lock is out of step with the code, params.yaml or the outputs here; type: dvc repro, and commit it"
        )
    done = _dvc("status", "--cloud", "--json")
    if done.returncode:
        raise ChargptError(f"the remote cannot be asked: {done.stderr.strip().splitlines()[-1]}")
    absent = [name for name, state in json.loads(done.stdout or "{}").items() if state in ("new", "missing")]
    if absent:
        raise ChargptError(f"not on the remote: {_few(sorted(absent))}; type: dvc push")
    return _register(name, f"v{number}", message or f"{name} v{number}")


def _register(name: str, version: str, message: str) -> str:
    from gto.api import register
    from gto.exceptions import GTOException

    try:
        register(".", name, "HEAD", version=version, message=message)
    except GTOException as error:
        raise ChargptError(_one_line(error)) from None
    return f"{name}@{version}"


def _dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True)


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
