"""`chargpt gate`: did a metric get worse than at another revision?"""

from __future__ import annotations

from pathlib import Path

from chargpt.app.metrics import METRICS, metrics_at
from chargpt.errors import ChargptError
from chargpt.files import finite_numbers, read_json


def compare(against: str | None, max_regression: float) -> tuple[str, list[tuple[str, float, float, bool]]]:
    """Each of the model's metrics at a revision and now, and whether it got worse; lower is better for all.

    against: any revision or experiment; None takes HEAD or, if nothing changed since, the commit before. Worse is more
    than `max_regression` above the old value, as a part of it. Returns the revision and (name, before, now, worse).
    Raises ChargptError if there is nothing to compare with.
    """
    now = finite_numbers(read_json(METRICS)) if Path(METRICS).exists() else {}
    if not now:
        raise ChargptError(f"{METRICS}: no metrics here; run dvc repro")
    revision = against or ("HEAD" if now != metrics_at("HEAD") else "HEAD~1")
    before = metrics_at(revision)
    missing = before.keys() - now.keys()
    if missing or not before:
        what = f"{', '.join(sorted(missing))} missing" if missing else f"nothing at {revision}"
        raise ChargptError(f"{METRICS}: {what}; run dvc repro, or name a revision that has it with --against")
    return revision, [
        (name, old, now[name], not now[name] <= old + abs(old) * max_regression) for name, old in sorted(before.items())
    ]
