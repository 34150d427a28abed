"""The room that the pipeline's data takes on this machine, outside the project too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

LARGE = 3e9  # bytes


def places() -> tuple[Path, Path | None]:
    """The directories of DVC's cache, and of its default remote if that is on this machine."""
    from dvc.repo import Repo

    with Repo() as repo:
        name = repo.config["core"].get("remote")
        url = str(repo.config["remote"].get(name, {}).get("url", ""))
        return Path(repo.cache.local.path), Path(url) if os.path.isabs(url) else None


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
