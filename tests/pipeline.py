"""Where the project is, and what a stage really reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class Recorder:
    """Stands in for Params and notes which keys are read."""

    def __init__(self, params: Any) -> None:
        self._params = params
        self.read: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name in type(self._params).model_fields:
            self.read.add(name)
        return getattr(self._params, name)

    def model_dump(self, include: set[str] | None = None) -> dict[str, Any]:
        self.read |= include if include is not None else set(type(self._params).model_fields)
        return self._params.model_dump(include=include)
