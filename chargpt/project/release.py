"""`chargpt release`: register the current commit as a version of the model, if nothing is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from chargpt.errors import ChargptError, escape
from chargpt.project.check import git_problems
from chargpt.project.compare import ARTIFACT
from chargpt.project.git import git, reason
from chargpt.project.params_file import read_yaml
from chargpt.project.pipeline import PIPELINE
from chargpt.runtime.exits import one_line


def release(version: str, message: str | None = None) -> str:
    """Register HEAD as a version of the model, with an annotated tag made by gto; return the tag's name.

    message: of the tag. Raises ChargptError, and makes no tag, unless dvc.yaml declares the artifact, nothing is
    uncommitted, dvc.lock matches the code, params.yaml and the outputs, the remote holds every output, and the version
    is new.
    """
    from gto.api import register
    from gto.exceptions import GTOException
    from gto.versions import SemVer

    version = f"v{version.removeprefix('v')}"
    if not SemVer.is_valid(version):
        raise ChargptError(f"{version[:40]}: not a version; it must look like v1.2.0")
    declared = read_yaml(Path(PIPELINE)).get("artifacts")
    if not isinstance(declared, dict) or ARTIFACT not in declared:
        raise ChargptError(f"{PIPELINE}: declares no artifact {ARTIFACT}; run: git checkout {PIPELINE}")
    for problem in git_problems():
        raise ChargptError(problem)
    dirty = git("status", "--porcelain", "-z", "--no-renames").split("\0")[:-1]
    if dirty:
        names = ", ".join(escape(line[3:]) for line in dirty[:5])
        raise ChargptError(f"not committed: {names}; commit these files, move them or name them in .gitignore")
    if "Running stage" in dvc("repro", "--dry", "--allow-missing"):
        raise ChargptError(
            "dvc.lock does not match the code, params.yaml or the outputs here; run: dvc repro, and commit it"
        )
    states = json.loads(dvc("status", "--cloud", "--json") or "{}")
    if absent := sorted(name for name, state in states.items() if state in ("new", "missing")):
        raise ChargptError(f"not on the remote: {', '.join(absent[:5])}; run: dvc push")
    try:
        register(".", ARTIFACT, "HEAD", version=version, message=message or f"{ARTIFACT} {version}")
    except GTOException as error:
        raise ChargptError(one_line(error)) from None
    return f"{ARTIFACT}@{version}"


def dvc(*arguments: str, folder: str | Path = ".") -> str:
    """The output of a DVC command run in `folder`. Raises ChargptError with DVC's own reason if it fails."""
    done = subprocess.run([sys.executable, "-P", "-m", "dvc", *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise ChargptError(f"dvc {' '.join(arguments)}: {reason(done.stderr, done.returncode)}; run: chargpt check")
    return done.stdout
