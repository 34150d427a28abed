"""The room that the pipeline's data takes on this machine, outside the project too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from chargpt.errors import ChargptError
from chargpt.runtime.exits import one_line

LARGE = 3e9  # bytes


def _default_remote() -> tuple[Path, str | None, str]:
    """The directory of DVC's cache, and the default remote's name and address.

    Raises ChargptError if DVC cannot read its configuration.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            name = repo.config["core"].get("remote")
            return Path(repo.cache.local_cache_dir), name, repo.config["remote"].get(name, {}).get("url", "")
    except DvcException as error:
        raise ChargptError(f"{one_line(error)}; correct the file, or type: git checkout .dvc/config") from None


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


def size_of(folder: Path) -> int:
    """Bytes of all files in a directory and below it; 0 if there is none."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # removed meanwhile
                continue
    return total


def notes() -> Iterator[str]:
    """Yield a line for each place with more than LARGE bytes of data, with the command that frees room."""
    cache, remote = places()
    command = "dvc gc --workspace --all-commits --all-experiments"
    others = f"{command} --cloud --projects EVERY_OTHER_CLONE_THAT_USES_IT"
    for path, what, how in ((cache, "DVC's cache", command), (remote, "the default remote", others)):
        if path and (size := size_of(path)) > LARGE:
            yield (
                f"{what}, {path}, holds {size / 1e9:.1f} GB; to remove what no commit or experiment of this clone"
                f" names: {how}"
            )
