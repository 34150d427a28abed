"""Read dvc.yaml: what a stage depends on."""

from __future__ import annotations

from pathlib import Path

from chargpt.errors import ChargptError
from chargpt.params import Params
from chargpt.project.params_file import read_yaml


def stage_deps(stage: str, params: Params) -> dict[str, Path]:
    """The files that dvc.yaml names as deps of a stage, by their path from the project's root.

    A directory stands for the files below it. Raises ChargptError if dvc.yaml does not describe the stage.
    """
    try:
        names = read_yaml(Path("dvc.yaml"))["stages"][stage]["deps"]
        names = [getattr(params, name[2:-1]) if name.startswith("${") else name for name in names]
    except (KeyError, TypeError, AttributeError):
        raise ChargptError(f"dvc.yaml: has no deps of the stage {stage}; run: git checkout dvc.yaml") from None
    files: dict[str, Path] = {}
    for name in names:
        below = sorted(Path(name).rglob("*")) if Path(name).is_dir() else [Path(name)]
        files |= {path.as_posix(): path for path in below if not path.is_dir() and "__pycache__" not in path.parts}
    return files
