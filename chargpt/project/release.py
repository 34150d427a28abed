"""`chargpt release`: register the current commit as a version of the model, if nothing is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from chargpt.errors import ChargptError, escape
from chargpt.project.check import git_problems
from chargpt.project.git import git
from chargpt.project.metrics import ARTIFACT
from chargpt.runtime.exits import one_line


def release(version: str, name: str = ARTIFACT, message: str | None = None) -> str:
    """Register HEAD as a version of the model, with an annotated tag made by gto; return the tag's name.

    name: the artifact in dvc.yaml. message: of the tag. Raises ChargptError, and makes no tag, unless dvc.yaml declares
    the artifact, nothing is uncommitted, dvc.lock matches the code, params.yaml and the outputs, the remote holds every
    output, and the version is new.
    """
    try:
        number = Version(version.removeprefix("v"))
        if len(number.release) != 3:
            raise InvalidVersion
    except ValueError:  # InvalidVersion, or a number with more digits than Python reads
        raise ChargptError(f"{version[:40]}: not a version; it must look like v1.2.0") from None
    declared = _artifacts()
    if name not in declared:
        raise ChargptError(f"{name}: dvc.yaml declares no such artifact; name one of: {', '.join(declared) or 'none'}")
    for problem in git_problems():
        raise ChargptError(problem)
    dirty = (git("status", "--porcelain", "-z", "--no-renames") or "").split("\0")[:-1]
    if unknown := [escape(line[3:]) for line in dirty if line.startswith("??")]:
        raise ChargptError(f"git does not know {_few(unknown)}; commit them, move them, or name them in .gitignore")
    if dirty:
        names = _few([escape(line[3:]) for line in dirty])
        raise ChargptError(f"uncommitted changes in {names}; commit them, so that the version names what you have")
    done = _dvc("repro", "--dry", "--allow-missing")
    if done.returncode or "Running stage" in done.stdout:
        raise ChargptError(
            "dvc.lock does not match the code, params.yaml or the outputs here; type: dvc repro, and commit it"
        )
    done = _dvc("status", "--cloud", "--json")
    if done.returncode:
        raise ChargptError(
            f"cannot read the remote: {done.stderr.strip().splitlines()[-1]}; correct its settings, then release again"
        )
    absent = [name for name, state in json.loads(done.stdout or "{}").items() if state in ("new", "missing")]
    if absent:
        raise ChargptError(f"not on the remote: {_few(sorted(absent))}; type: dvc push")
    return _register(name, f"v{number}", message or f"{name} v{number}")


def _artifacts() -> dict[str, Any]:
    """The artifacts that dvc.yaml declares, by name. Raises ChargptError if it cannot be read."""
    try:
        pipeline = YAML(typ="safe").load(Path("dvc.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError) as error:
        raise ChargptError(f"dvc.yaml: {one_line(error)}; correct it, or type: git checkout dvc.yaml") from None
    artifacts = pipeline.get("artifacts") if isinstance(pipeline, dict) else None
    return artifacts if isinstance(artifacts, dict) else {}


def _register(name: str, version: str, message: str) -> str:
    from gto.api import register
    from gto.exceptions import GTOException

    try:
        register(".", name, "HEAD", version=version, message=message)
    except GTOException as error:
        raise ChargptError(one_line(error)) from None
    return f"{name}@{version}"


def _dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True)


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
