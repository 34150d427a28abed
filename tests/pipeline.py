"""What a stage really imports and reads, for comparing with what dvc.yaml says."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def imported_files(path: Path, seen: set[str] | None = None) -> set[str]:
    """The project's files that a file imports, at any depth, itself included; imports inside functions count."""
    seen = set() if seen is None else seen
    relative = path.relative_to(ROOT).as_posix()
    if relative in seen:
        return seen
    seen.add(relative)
    modules = {path.parent.name}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    for module in modules:
        if module.split(".")[0] in ("chargpt", "stages"):
            base = ROOT / module.replace(".", "/")
            for file in (base.with_suffix(".py"), base / "__init__.py", base.parent / "__init__.py"):
                if file.is_file():
                    imported_files(file, seen)
    return seen


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
