"""Compare dvc.lock with the last commit's: which stages made other bytes from the same inputs?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from chargpt.files import read_json
from chargpt.paths import METRICS
from chargpt.project.git import git

LOCK = "dvc.lock"
INPUTS = ("cmd", "deps", "params")


def other_bytes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The stages with the same command, inputs and parameters in both locks, but other outputs.

    before, now: the `stages` of two dvc.lock files. A stage whose input is such an output has another input, and is not
    named.
    """

    def same(name: str, *keys: str) -> bool:
        return all(_part(before[name], key) == _part(now[name], key) for key in keys)

    return sorted(name for name in before.keys() & now.keys() if same(name, *INPUTS) and not same(name, "outs"))


def _part(stage: Any, key: str) -> Any:
    return stage.get(key) if isinstance(stage, dict) else None


def note() -> str | None:
    """A line for the user if this machine made other bytes than the last commit records, or None."""
    committed = git("show", f"HEAD:{LOCK}")
    try:
        before, now = (_stages(text) for text in (committed or "", Path(LOCK).read_text(encoding="utf-8")))
    except (OSError, YAMLError):
        return None
    if not (names := other_bytes(before, now)):
        return None
    figures = " and ".join(
        f"{value:.4f} {where}" for value, where in ((_val_loss(), "here"), (_val_loss("HEAD"), "there")) if value
    )
    return (
        f"from the same code, data and parameters, {' and '.join(names)} made other bytes than the last commit records,"
        " as another processor or another number of threads does"
        + (f" (val_loss {figures})" if figures else "")
        + f"; to record yours: git commit -m 'Results of this machine' {LOCK} metrics"
    )


def _stages(text: str) -> dict[str, Any]:
    lock = YAML(typ="safe").load(text)
    stages = lock.get("stages") if isinstance(lock, dict) else None
    return stages if isinstance(stages, dict) else {}


def _val_loss(revision: str = "") -> float | None:
    try:
        figures = json.loads(git("show", f"{revision}:{METRICS}") or "{}") if revision else read_json(METRICS)
    except ValueError:
        return None
    value = figures.get("val_loss") if isinstance(figures, dict) else None
    return value if isinstance(value, float) else None
