"""`chargpt gate`: find out whether a loss is worse than at another revision."""

from __future__ import annotations

from pathlib import Path

from chargpt.errors import ChargptError
from chargpt.files import finite_numbers, read_json
from chargpt.paths import METRICS
from chargpt.project.metrics import metrics_at


def compare(against: str | None, max_regression: float) -> tuple[str, list[tuple[str, float, float, bool]]]:
    """Compare each of the model's losses with its value at another revision. Lower is better for all of them.

    against: any revision or experiment; None takes HEAD or, if no metric changed since HEAD, the commit before it.
    max_regression: allowed rise, as a fraction of the old value; a metric that rose more is worse.
    Returns the revision and, for each metric, (name, value there, value now, whether it is worse).
    Raises ChargptError if there is nothing to compare with.
    """
    now = finite_numbers(read_json(METRICS)) if Path(METRICS).exists() else {}
    if not now:
        raise ChargptError(f"{METRICS}: no metrics here; run dvc repro")
    revision = against or ("HEAD" if now != metrics_at("HEAD") else "HEAD~1")
    before = metrics_at(revision)
    missing = before.keys() - now.keys()
    if missing or not before:
        what = f"{', '.join(sorted(missing))} missing" if missing else f"no metrics at {revision}"
        raise ChargptError(f"{METRICS}: {what}; run dvc repro, or name a revision that has it with --against")
    return revision, [
        (name, old, now[name], not now[name] <= old + abs(old) * max_regression) for name, old in sorted(before.items())
    ]
