"""Paths of the pipeline's files, from the root of a clone. dvc.yaml names the same ones."""

from __future__ import annotations

import shlex
from pathlib import Path

from chargpt.errors import ChargptError, escape

INPUT = "data/tinyshakespeare.txt"  # what the download stage writes
TOKENS = "data/tokens.safetensors"
VOCAB = "artifacts/vocab.json"
INIT = "artifacts/init.safetensors"  # a copy of the model file that training starts from; empty if there is none
MIGRATED = "artifacts/migrated.safetensors"
MIGRATION = "metrics/migrate.json"
MODEL = "artifacts/model.safetensors"
CURVE = "metrics/curves.tsv"
METRICS = "metrics/evaluate.json"
POSITIONS = "metrics/positions.tsv"
CHARACTERS = "metrics/characters.tsv"
REPORT = "metrics/report.html"
SAMPLES = "artifacts/sample.txt"
HF = "artifacts/hf"
BASE = "base/model.safetensors"
MODELS = "models"  # the directory of model files that `init` may name


def init_file(init: str) -> Path | None:
    """The model file that a value of `init` names; None if it names none, or the migrated model.

    Raises ChargptError if there is no such file, or if it lies outside of MODELS, which DVC watches.
    """
    if init in ("scratch", "migrated"):
        return None
    path = Path(BASE if init in ("auto", "base") else init)
    if path.parts[0] not in (MODELS, Path(BASE).parent.name) or ".." in path.parts:
        hint = f"run: cp {shlex.quote(init)} {MODELS}/" if path.is_file() else "or auto, scratch, base or migrated"
        raise ChargptError(f"init is {escape(init)}; it must be a model file in {MODELS}/: {hint}")
    if not path.is_file():
        raise ChargptError(f"init: {escape(init)}: no such file; put it there, and run: git add {shlex.quote(init)}")
    return path
