"""Ask git about the project, and find code files that git does not track."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from chargpt.errors import ChargptError


def git(*arguments: str, folder: str | Path = ".") -> str | None:
    """The output of a git command run in `folder`, or None if the command fails or git is not installed."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.decode("utf-8", "replace")


def project_folder() -> str:
    """The main checkout, also if DVC runs a queued experiment in a copy of it.

    The copy has neither the tags nor the untracked files of the main checkout.
    """
    return os.environ.get("DVC_ROOT", ".")


def untracked_code() -> list[str]:
    """The pipeline's code files that git does not track. DVC's copy of the project for an experiment lacks them."""
    listed = git("ls-files", "-z", "--others", "--exclude-standard", "chargpt", "stages", folder=project_folder())
    return [name for name in (listed or "").split("\0") if name.endswith((".py", ".j2"))]


def refuse_untracked_code() -> None:
    """In a DVC experiment, raise ChargptError if git does not track a code file: the commit would lack it."""
    names = untracked_code() if "DVC_EXP_NAME" in os.environ else []
    if names:
        raise ChargptError(f"{', '.join(names)}: not known to git, so not part of the experiment; {remedy(names)}")


def remedy(names: list[str]) -> str:
    """What to type so that git tracks these files."""
    return f"type: git add {' '.join(names)}"
