"""Where the project is, what dvc.yaml says of its stages, and what a stage really reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
STAGES: dict[str, Any] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
HF_FILES = ["README.md", "config.json", "model.safetensors", "onnx/model.onnx", "tokenizer.json"]
HF_FILES += ["generation_config.json", "tokenizer_config.json"]


def outputs(stage: str) -> list[str]:
    """The files that a stage writes, those of a directory one by one."""
    about = STAGES[stage]
    names = [next(iter(out)) if isinstance(out, dict) else out for out in about["outs"] + about.get("metrics", [])]
    return [f"{names[0]}/{file}" for file in HF_FILES] if stage == "export" else sorted(names)


class Recorder:
    """Stands in for Params and notes which keys are read."""

    def __init__(self, params: Any) -> None:
        self._params = params
        self.read: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name in type(self._params).model_fields:
            self.read.add(name)
        return getattr(self._params, name)
