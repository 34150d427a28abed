"""Read dvc.yaml: the files of its stages."""

from __future__ import annotations

from pathlib import Path

from chargpt.errors import ChargptError
from chargpt.params import Params
from chargpt.project.params_file import read_yaml

PIPELINE = "dvc.yaml"


def stage_files(*parts: str) -> dict[str, list[str]]:
    """For each stage of dvc.yaml, the names in these parts of it, such as `deps`. A name may contain `${key}`.

    Raises ChargptError if dvc.yaml cannot be read.
    """
    files: dict[str, list[str]] = {}
    try:
        for stage, about in (read_yaml(Path(PIPELINE)).get("stages") or {}).items():
            entries = [entry for part in parts for entry in about.get(part, ())]
            files[stage] = [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]
    except (AttributeError, TypeError):
        raise ChargptError(f"{PIPELINE}: its stages are not in DVC's format; run: git checkout {PIPELINE}") from None
    return files


def stage_deps(stage: str, params: Params) -> dict[str, Path]:
    """The files that dvc.yaml names as deps of a stage, by their path from the project's root.

    A directory stands for the files below it. Raises ChargptError if dvc.yaml does not describe the stage.
    """
    names = stage_files("deps").get(stage)
    if not names:
        raise ChargptError(f"{PIPELINE}: has no deps of the stage {stage}; run: git checkout {PIPELINE}")
    files: dict[str, Path] = {}
    for name in names:
        path = Path(getattr(params, name[2:-1]) if name.startswith("${") else name)
        below = sorted(path.rglob("*")) if path.is_dir() else [path]
        files |= {file.as_posix(): file for file in below if not file.is_dir() and "__pycache__" not in file.parts}
    return files
