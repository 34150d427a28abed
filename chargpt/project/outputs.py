"""Files of the pipeline: those that commands read, and those that no command may replace."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from chargpt.errors import ChargptError


def require_outputs(*names: str) -> None:
    """Raise ChargptError that says how to make or fetch the first of these outputs that does not exist."""
    for name in names:
        if not Path(name).exists():
            if not Path("dvc.yaml").exists():
                raise ChargptError(f"{name}: no such file here; run from the project's root, or give a path")
            raise ChargptError(f"{name}: no such file; type: dvc repro --pull (which fetches it, or makes it)")


def refuse_own(output: Path | None, model: Path | None = None) -> None:
    """Raise ChargptError if writing `output` would replace the model that is read, or a file of the pipeline here."""
    from chargpt.project.params_file import PARAMS_FILE, load_params, read_yaml  # slow; --help needs none of it

    if output is None:
        return
    if model and os.path.realpath(model) == os.path.realpath(output):
        raise ChargptError(f"--output {output} is the model itself and would replace it; give another path")
    names = {"dvc.yaml", "dvc.lock", PARAMS_FILE}
    with suppress(ChargptError):  # not in a project, or with a params.yaml that names no corpus
        names.add(load_params().corpus)
    with suppress(ChargptError, KeyError, AttributeError, TypeError):  # likewise, or with a dvc.yaml of another form
        for stage in read_yaml(Path("dvc.yaml"))["stages"].values():
            for entry in (entry for part in ("deps", "outs", "metrics", "plots") for entry in stage.get(part, ())):
                names |= {entry} if isinstance(entry, str) else set(entry)  # a string, or a mapping from the name
    target = Path(os.path.realpath(output))
    for name in sorted(names):
        if Path(name).exists() and target.is_relative_to(os.path.realpath(name)):
            raise ChargptError(f"--output {output} is the project's {name} and would replace it; give another path")


def require_clone() -> None:
    """Raise ChargptError if the working directory is not the root of a clone."""
    if not Path("dvc.yaml").exists():
        raise ChargptError("dvc.yaml: no such file; run from the root of a clone of chargpt")
