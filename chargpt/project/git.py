"""Ask git about the project, and find code files that git does not track."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

from chargpt.errors import ChargptError, escape

TIMEOUT_S = 300  # a remote that does not answer; `git status` of a large project may take a minute
NO_REPOSITORY = "not a git repository"  # git's words


def git(*arguments: str, folder: str | Path = ".") -> str:
    """The output of a git command run in `folder`.

    Raises ChargptError with git's own reason if the command fails, git is not installed or does not answer.
    """
    command = ["git", "-C", str(folder), *arguments]
    environment = os.environ | {"LC_ALL": "C"}  # reasons in English
    try:
        done = subprocess.run(command, capture_output=True, env=environment, timeout=TIMEOUT_S)
    except FileNotFoundError:
        raise ChargptError("git is not installed, and DVC needs it; install it") from None
    except subprocess.TimeoutExpired:
        raise ChargptError(f"git {arguments[0]}: no answer within {TIMEOUT_S} seconds") from None
    if done.returncode:
        raise ChargptError(f"git {arguments[0]}: {reason(done.stderr.decode('utf-8', 'replace'), done.returncode)}")
    return done.stdout.decode("utf-8", "replace")


def try_git(*arguments: str, folder: str | Path = ".") -> str | None:
    """The output of a git command that may fail, because what it asks for may not exist; None if it fails.

    Only for questions where a failure of git itself loses nothing.
    """
    try:
        return git(*arguments, folder=folder)
    except ChargptError:
        return None


def reason(output: str, status: int) -> str:
    """Why a command of git or DVC failed, in one line: its last error, without the credentials in URLs.

    A stage's own error comes before DVC's summary. output: what the command printed, perhaps nothing. status: its exit
    status.
    """
    own = output.partition("Having any troubles?")[0]  # DVC goes on to advertise its support
    lines = [line.strip() for line in own.splitlines() if line.strip()]
    # of stages and git, or else of DVC
    errors = [i for start in ("ERROR:", ("fatal:", "error:")) for i, line in enumerate(lines) if line.startswith(start)]
    said = " ".join(lines[errors[-1] if errors else -1 :])
    return without_credentials(said)[:400] or f"exit status {status} without a message"


def without_credentials(text: str) -> str:
    """The text with the user names, passwords and tokens removed from its URLs."""
    return re.sub(r"(\w://)[^/\s]*@", r"\1", text)


def untracked_code() -> str | None:
    """A line about the pipeline's code files that git does not track, or None if it tracks all of them.

    DVC's copy of the project for an experiment lacks such files, so this asks in the main checkout. Raises ChargptError
    if git cannot list them.
    """
    main = os.environ.get("DVC_ROOT", ".")
    listed = git("ls-files", "-z", "--others", "--exclude-standard", "chargpt", "stages", folder=main)
    names = [escape(name) for name in listed.split("\0") if name.endswith((".py", ".j2"))]
    lack = f"{', '.join(names)}: not tracked by git, so experiments lack it; run: git add {shlex.join(names)}"
    return lack if names else None


def refuse_untracked_code() -> None:
    """In a DVC experiment, raise ChargptError if git does not track a code file: the commit would lack it."""
    if "DVC_EXP_NAME" in os.environ and (line := untracked_code()):
        raise ChargptError(line)
