"""The model's metrics at other revisions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from chargpt.errors import ChargptError
from chargpt.files import finite_numbers
from chargpt.paths import METRICS
from chargpt.project.git import git
from chargpt.runtime.exits import one_line

ARTIFACT = "chargpt"  # the model's name in dvc.yaml, and the first part of its version tags


def metrics_at(revision: str) -> dict[str, float]:
    """The numbers in the metrics file at a revision or experiment; empty if it has no such file.

    Raises ChargptError if there is no such revision.
    """
    import dvc.api

    try:
        return finite_numbers(dvc.api.metrics_show(METRICS, rev=revision))
    except FileNotFoundError:
        return {}
    except Exception as error:  # for an unknown revision, libraries of DVC and git raise errors of many types
        raise ChargptError(
            f"{revision}: {one_line(error)}; name one that `git log` or `dvc exp show` lists"
            " (in CI, fetch the whole history: fetch-depth: 0)"
        ) from None


def previous_version(figures: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Tag and metrics of the newest version in HEAD's history whose metrics are not `figures`, or None.

    A version with exactly these metrics is the same model: it was released before the pipeline ran again.
    """
    tags = git("tag", "--merged", "HEAD", "--sort=-version:refname", "--list", f"{ARTIFACT}@v*")
    for tag in (tags or "").split():
        try:
            before = json.loads(git("show", f"{tag}:{METRICS}") or "")
        except (ValueError, RecursionError):
            continue
        if isinstance(before, dict) and before != figures:
            return tag, finite_numbers(before)
    return None
