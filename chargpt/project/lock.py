"""Compare dvc.lock with the last commit's: which stages produced different bytes from the same inputs?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from chargpt.project.git import try_git

LOCK = "dvc.lock"


def different_bytes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The stages with the same command, inputs and parameters in both locks, but other outputs.

    before, now: the `stages` of two dvc.lock files. A stage whose input is such an output has another input, and is not
    named.
    """
    both = [name for name in before if name in now and before[name] != now[name]]
    return [name for name in both if before[name] | {"outs": None} == now[name] | {"outs": None}]


def note() -> str | None:
    """A line for the user if this machine produced different bytes from those that the last commit records, or None."""
    committed = try_git("show", f"HEAD:{LOCK}") or ""
    try:
        locks = [YAML(typ="safe").load(text) for text in (committed, Path(LOCK).read_text(encoding="utf-8"))]
        names = different_bytes(*(lock["stages"] for lock in locks))
    except (OSError, YAMLError, AttributeError, KeyError, TypeError):  # one of them is missing or damaged
        return None
    line = (
        f"{' and '.join(names)} produced different bytes from the committed run: a different CPU or thread count does"
        f" this. To compare the losses, run: dvc metrics diff. To record yours, run: git commit -m 'Results of this"
        f" machine' {LOCK} metrics"
    )
    return line if names else None
