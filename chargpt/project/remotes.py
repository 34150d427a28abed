"""Where DVC keeps the pipeline's data: its cache and the default remote."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from chargpt.errors import ChargptError
from chargpt.runtime.exits import one_line

LARGE = 3e9  # bytes


@contextmanager
def dvc_repository() -> Iterator[Any]:
    """DVC's object for the project in the working directory. Raises ChargptError if DVC cannot read a file of it."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            yield repo
    except DvcException as error:
        raise ChargptError(
            f"{one_line(error)}; correct the file, or run: git checkout dvc.yaml dvc.lock .dvc/config"
        ) from None


def _default_remote() -> tuple[Path, str | None, str]:
    """The directory of DVC's cache, and the default remote's name and address."""
    with dvc_repository() as repo:
        name = repo.config["core"].get("remote")
        return Path(repo.cache.local_cache_dir), name, repo.config["remote"].get(name, {}).get("url", "")


def places() -> tuple[Path, Path | None]:
    """The directories of DVC's cache, and of its default remote if that is on this machine."""
    cache, _, url = _default_remote()
    return cache, Path(url) if os.path.isabs(url) else None


def relative_remote() -> str | None:
    """The name of the default remote if its path is relative, or None."""
    from dvc.config_schema import RelPath

    _, name, url = _default_remote()
    return name if isinstance(url, RelPath) else None


def private_remote() -> Path | None:
    """The default remote if it is a directory in the user's home, where colleagues do not reach it, or None."""
    _, remote = places()
    return remote if remote and remote.is_relative_to(Path.home()) else None


def large_data() -> Iterator[str]:
    """Yield a line for the cache and for the remote if it holds more than LARGE bytes, and how to free some."""
    cache, remote = places()
    command = "dvc gc --workspace --all-commits --all-experiments"
    others = f"{command} --cloud --projects EVERY_OTHER_CLONE_THAT_USES_IT"
    for path, what, how in ((cache, "DVC's cache", command), (remote, "the default remote", others)):
        size = 0
        with suppress(OSError):  # a file was removed meanwhile
            size = sum(file.lstat().st_size for file in path.rglob("*")) if path else 0
        if size > LARGE:
            yield (
                f"{what}, {path}, holds {size / 1e9:.1f} GB. To remove what no commit or experiment of this clone uses,"
                f" run: {how}"
            )
