"""What git knows of the project: code it does not know yet, versions that came before."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chargpt.errors import ChargptError
from chargpt.files import numbers

ARTIFACT = "chargpt"  # the model's name in dvc.yaml, and the first part of its version tags
METRICS = "metrics/evaluate.json"


def git(*arguments: str, folder: str | Path = ".") -> str | None:
    """The output of a git command, or None if it failed or there is no git."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.decode("utf-8", "replace")


def project_folder() -> str:
    """The main checkout: DVC runs a queued experiment in a copy, which has neither its tags nor its untracked files."""
    return os.environ.get("DVC_ROOT", ".")


def untracked_code() -> list[str]:
    """The pipeline's modules that git does not know: an experiment's copy of the project would lack them."""
    listed = git("ls-files", "-z", "--others", "--exclude-standard", "chargpt", "stages", folder=project_folder())
    return [name for name in (listed or "").split("\0") if name.endswith((".py", ".j2"))]


def refuse_untracked_code() -> None:
    """Raise ChargptError in a DVC experiment whose commit would not hold all of its code."""
    names = untracked_code() if "DVC_EXP_NAME" in os.environ else []
    if names:
        raise ChargptError(f"{', '.join(names)}: not known to git, so not part of the experiment; {remedy(names)}")


def remedy(names: list[str]) -> str:
    """What to type about untracked code."""
    return f"type: git add {' '.join(names)}"


def previous_version(figures: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Tag and metrics of the newest version in this commit's history that has other figures, or None.

    A version with these very figures is this model itself, released before its pipeline ran again.
    """
    folder, commit = project_folder(), os.environ.get("DVC_EXP_BASELINE_REV", "HEAD")
    tags = git("tag", "--merged", commit, "--sort=-version:refname", "--list", f"{ARTIFACT}@v*", folder=folder)
    for tag in (tags or "").split():
        try:
            before = json.loads(git("show", f"{tag}:{METRICS}", folder=folder) or "")
        except (ValueError, RecursionError):
            continue
        if isinstance(before, dict) and before != figures:
            return tag, numbers(before)
    return None
