"""Questions to git, and the code that it does not know yet."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from chargpt.errors import ChargptError


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
