"""Files of the pipeline: the outputs that commands read, and the inputs that no command may replace."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from chargpt.app.params_file import PARAMS_FILE, load_params
from chargpt.errors import ChargptError

MODEL, TOKENS = "artifacts/model.safetensors", "data/tokens.safetensors"
EXPORT = "artifacts/hf"
CURVE, METRICS, REPORT = "metrics/curves.tsv", "metrics/evaluate.json", "metrics/report.html"


def require_outputs(*names: str) -> None:
    """Raise ChargptError that says how to make or fetch the first of these outputs that does not exist."""
    for name in names:
        if not Path(name).exists():
            raise ChargptError(f"{name}: no such file; type: dvc repro --pull (which fetches it, or makes it)")


def refuse_inputs(output: Path | None) -> None:
    """Raise ChargptError if writing `output` would replace an input of the pipeline here, or its export."""
    inputs = ["dvc.yaml", "dvc.lock", PARAMS_FILE, EXPORT]
    with suppress(ChargptError):  # not in a project, or with a params.yaml that names no corpus
        inputs.append(load_params().corpus)
    for name in inputs:
        if output and Path(name).exists() and os.path.realpath(name) == os.path.realpath(output):
            raise ChargptError(f"--output {output} is the project's {name} and would replace it; give another path")


def require_clone() -> None:
    """Raise ChargptError if the working directory is not the root of a clone."""
    if not Path("dvc.yaml").exists():
        raise ChargptError("dvc.yaml: no such file; run from the root of a clone of chargpt")
