"""The model's metrics at other revisions: `chargpt gate`, and the comparison in `chargpt report`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from chargpt.errors import ChargptError
from chargpt.files import finite_numbers, parse_json, read_json, write_text
from chargpt.paths import CURVE, METRICS, MODEL, TOKENS
from chargpt.project.git import git, try_git
from chargpt.project.outputs import require_outputs

ARTIFACT = "chargpt"  # the model's name in dvc.yaml, and the first part of its version tags


def metrics_at(revision: str) -> dict[str, float]:
    """The numbers in the metrics file at a revision or experiment; empty if it has no such file.

    Read with git, because DVC waits for ever in a partial clone. Raises ChargptError if there is no such revision.
    """
    experiments = git("for-each-ref", "--sort=committerdate", "--format=%(refname:lstrip=4) %(objectname)", "refs/exps")
    commits = dict(line.split(" ") for line in experiments.splitlines())
    commit = try_git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}") or commits.get(revision, "")
    if not (commit := commit.strip()):
        raise ChargptError(
            f"{revision}: unknown Git revision; name one that `git log` or `dvc exp show` lists"
            " (in CI, fetch the whole history: fetch-depth: 0)"
        )
    if not git("ls-tree", "--name-only", commit, METRICS):
        return {}
    return finite_numbers(parse_json(git("show", f"{commit}:./{METRICS}"), f"{revision}: {METRICS}"))


def compare(against: str | None, max_regression: float) -> tuple[str, list[tuple[str, float, float, bool]]]:
    """Compare each of the model's losses with its value at another revision. Lower is better for all of them.

    against: any revision or experiment; None takes HEAD or, if no metric changed since HEAD, the commit before it.
    max_regression: allowed rise, as a fraction of the old value; a metric that rose more is worse.
    Returns the revision and, for each metric, (name, value there, value now, whether it is worse).
    Raises ChargptError if there is nothing to compare with.
    """
    now = finite_numbers(read_json(METRICS)) if Path(METRICS).exists() else {}
    if not now:
        raise ChargptError(f"{METRICS}: no metrics; run: dvc repro")
    revision = against or ("HEAD" if now != metrics_at("HEAD") else "HEAD~1")
    before = metrics_at(revision)
    missing = before.keys() - now.keys()
    if missing or not before:
        what = f"{', '.join(sorted(missing))} missing" if missing else f"no metrics at {revision}"
        raise ChargptError(f"{METRICS}: {what}; name a revision that has it with --against, or run: dvc repro")
    return revision, [
        (name, old, now[name], not now[name] <= old + abs(old) * max_regression) for name, old in sorted(before.items())
    ]


def previous_version(figures: Mapping[str, float]) -> tuple[str, dict[str, float]] | None:
    """Tag and metrics of the newest version in HEAD's history whose metrics are not `figures`, or None.

    A version with exactly these metrics is the same model: it was released before the pipeline ran again.
    """
    newest_first = ("-c", "versionsort.suffix=-", "tag", "--sort=-version:refname")  # `-`: of pre-releases
    tags = try_git(*newest_first, "--merged", "HEAD", "--list", f"{ARTIFACT}@v[0-9]*") or ""
    for tag in tags.split():
        before = metrics_at(tag)
        if before and before != figures:
            return tag, before
    return None


def write_report(output: Path, against: str | None = None, device: str = "auto") -> str | None:
    """Write the page about the current model. Returns the revision that the page compares with, or None.

    against: any revision or experiment; None takes the newest version in HEAD's history whose metrics differ.
    Raises ChargptError if an output of the pipeline is missing, or if the revision has no metrics.
    """
    from chargpt.evaluation.curve import read_curve
    from chargpt.evaluation.page import make_report
    from chargpt.model.file import read_model
    from chargpt.text.tokens import read_tokens

    if output.suffix.lower() != ".html":
        raise ChargptError(f"--output {output}: not an .html file; give another path")
    require_outputs(MODEL, TOKENS, CURVE, METRICS)
    file = read_model(MODEL)
    splits = read_tokens(TOKENS, file.vocab)
    curve = read_curve(CURVE)
    if not against:
        previous = previous_version(finite_numbers(read_json(METRICS)))
    else:
        previous = (against, metrics_at(against))
        if not previous[1]:
            raise ChargptError(f"{against}: has no {METRICS}; name a revision that has it with --against")
    print("evaluating the model; this takes a few seconds", file=sys.stderr)
    write_text(output, make_report(file, *splits, curve, previous, device).page)
    return previous[0] if previous else None
