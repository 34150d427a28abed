"""Where DVC keeps the pipeline's data: its cache and the default remote."""

from __future__ import annotations

import getpass
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chargpt.errors import ChargptError
from chargpt.runtime.exits import one_line


@contextmanager
def dvc_repository() -> Iterator[Any]:
    """DVC's object for the project in the working directory.

    Raises ChargptError if DVC cannot read a file of it, or if the user has no name or home, as in `docker run -u 1234`.
    """
    try:
        getpass.getuser(), Path.home()  # DVC fails without them
    except (KeyError, OSError, RuntimeError):
        raise ChargptError(
            f"DVC needs a name and a home, which user {os.getuid()} has not; run: export USER=me HOME=/tmp"
        ) from None
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            yield repo
    except DvcException as error:
        raise ChargptError(
            f"{one_line(error)}; correct the file, or run: git checkout dvc.yaml dvc.lock .dvc/config"
        ) from None


def default_remote() -> tuple[str | None, str]:
    """The default remote's name and address."""
    with dvc_repository() as repo:
        name = repo.config["core"].get("remote")
        return name, repo.config["remote"].get(name, {}).get("url", "")


def relative_remote() -> str | None:
    """A line about the default remote if its path is relative, or None."""
    from dvc.config_schema import RelPath

    name, url = default_remote()
    line = (
        f"the DVC remote {name} has a relative path, which means another directory in each clone; run:"
        f" dvc remote modify {name} url {shlex.quote(f'{Path.cwd()}/store')} (or another absolute path)"
    )
    return line if isinstance(url, RelPath) else None


def private_remote() -> Path | None:
    """The default remote if it is a directory in the user's home, where colleagues do not reach it, or None."""
    remote = Path(default_remote()[1])
    return remote if remote.is_relative_to(Path.home()) else None
