"""The pipeline's outputs that commands read."""

from __future__ import annotations

from pathlib import Path

from chargpt.errors import ChargptError

MODEL, TOKENS = "artifacts/model.safetensors", "data/tokens.safetensors"
CURVE, METRICS, REPORT = "metrics/curves.tsv", "metrics/evaluate.json", "metrics/report.html"


def require_outputs(*names: str) -> None:
    """Raise ChargptError that says how to make or fetch the first of these outputs that does not exist."""
    for name in names:
        if not Path(name).exists():
            raise ChargptError(f"{name}: no such file; run `dvc repro` to make it, or `dvc pull` to fetch it")
