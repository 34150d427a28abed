"""Files of the pipeline: those that commands read, and those that no command may replace."""

from __future__ import annotations

import os
import re
from pathlib import Path

from chargpt.errors import ChargptError


def require_outputs(*names: str) -> None:
    """Raise ChargptError that says how to make or fetch the first of these outputs that does not exist."""
    for name in names:
        if not Path(name).exists():
            if not Path("dvc.yaml").exists():
                raise ChargptError(f"{name}: no such file here; run from the project's root, or give a path")
            raise ChargptError(f"{name}: no such file; to fetch or make it, run: dvc repro --pull")


def require_clone() -> None:
    """Raise ChargptError if the working directory is not the root of a clone."""
    if not Path("dvc.yaml").exists():
        raise ChargptError("dvc.yaml: no such file; run from the root of a clone of chargpt")


def refuse_own(output: Path | None, *inputs: Path | None) -> None:
    """Raise ChargptError if writing `output` would replace a file that the command reads, or a file of the pipeline.

    inputs: the files that the command reads. Also raises ChargptError if dvc.yaml or params.yaml cannot be read:
    they name the files of the pipeline.
    """
    if output is None:
        return
    target = Path(os.path.realpath(output))
    special = target.exists() and not target.is_file() and not target.is_dir()
    if special or str(output) == "-" or output.is_relative_to("/dev"):
        raise ChargptError(f"--output {output} is not a file; leave --output out, or give the path of a file")
    if output.is_symlink() and not target.is_dir():
        raise ChargptError(f"--output {output} is a symbolic link; links are not replaced: use --output {target}")
    if any(path and os.path.realpath(path) == str(target) for path in inputs):
        raise ChargptError(f"--output {output} is an input of this command and would replace it; give another path")
    for name in sorted(_own_files()) if Path("dvc.yaml").exists() else ():
        if Path(name).exists() and target.is_relative_to(os.path.realpath(name)):
            raise ChargptError(f"--output {output} is the project's {name} and would replace it; give another path")


def _own_files() -> set[str]:
    """What the stages read and write, the values of params.yaml in the place of `${key}`, and DVC's files."""
    from chargpt.project.params_file import PARAMS_FILE, read_yaml  # slow to import, and --help needs none of it
    from chargpt.project.pipeline import PIPELINE, stage_files

    values = read_yaml(Path(PARAMS_FILE)) if Path(PARAMS_FILE).exists() else {}
    names = {PIPELINE, "dvc.lock", PARAMS_FILE}.union(*stage_files("deps", "outs", "metrics", "plots").values())
    return {re.sub(r"\$\{(\w+)\}", lambda key: str(values.get(key[1], key[0])), name) for name in names}
