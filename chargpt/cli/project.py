"""`chargpt check`, `gate`, `report` and `release`: the project around the model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from chargpt.cli.models import load
from chargpt.errors import ChargptError, escape
from chargpt.paths import MODEL
from chargpt.project.outputs import refuse_own
from chargpt.runtime.environment import limit_threads
from chargpt.runtime.exits import import_undisturbed


def check() -> None:
    """Look for problems in the parameters, the environment and git, and name the command to run next."""
    from chargpt.project.check import changed_stages, notes, problems

    found = list(problems())
    for problem in found:
        print(f"problem: {escape(problem, len(problem))}", file=sys.stderr)
    if found:
        raise ChargptError("problems found; fix them and run: chargpt check")
    changed = changed_stages()
    for note in notes():
        print(f"note: {note}")
    fetch = " --pull" if changed and not Path(MODEL).exists() and Path("dvc.lock").exists() else ""  # a fresh clone
    print("all in order; " + (f"next: dvc repro{fetch} (changed: {', '.join(changed)})" if changed else "up to date"))


def gate(
    against: Annotated[str | None, typer.Option(help="Revision or experiment; by default, the last other one.")] = None,
    max_regression: Annotated[float, typer.Option(min=0, help="Allowed rise, as a fraction of the old value.")] = 0.01,
) -> None:
    """Exit with status 1 if a metric is worse than at another revision; for continuous integration."""
    import_undisturbed("dvc")
    from chargpt.project.compare import compare

    revision, rows = compare(against, max_regression)
    for name, before, now, worse in rows:
        verdict = "  worse" if worse else ""
        print(f"{escape(name):<14} {revision} {before:.6f}  now {now:.6f}  {now - before:+.6f}{verdict}")
    names = [name for name, *_, worse in rows if worse]
    if names:
        raise ChargptError(
            f"worse than at {revision} by more than {max_regression:.2%}: {', '.join(names)};"
            " keep the old model, or allow more with --max-regression"
        )


def report(
    against: Annotated[str | None, typer.Option(help="Revision or experiment; by default, the last version.")] = None,
    output: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    text: Annotated[Path | None, typer.Option(help="Show this text instead, coloured by the model's surprise.")] = None,
    model: Annotated[Path, typer.Option(help="Model file for --text.")] = Path(MODEL),
) -> None:
    """Write a page about the pipeline's model, compared with another version of it, or about a text."""
    limit_threads()
    refuse_own(output, text, model)
    if text:
        from chargpt.evaluation.surprise import text_page
        from chargpt.files import write_text
        from chargpt.text.corpus import read_text

        write_text(output, text_page(load(model), "".join(read_text(text)).split("\n")))
        print(f"wrote {output}")
        return
    import_undisturbed("torch")
    from chargpt.project.compare import write_report

    previous = write_report(output, against, device)
    print(f"wrote {output}; " + (f"compared with {previous}" if previous else "no earlier version to compare with"))


def release(
    version: Annotated[str, typer.Argument(help="Version, such as v1.2.0.")],
    message: Annotated[str | None, typer.Option("--message", "-m", help="Message of the tag.")] = None,
) -> None:
    """Register the current commit as a version of the model, if it is complete and others can fetch the model."""
    from chargpt.project import release as releasing
    from chargpt.project.remotes import private_remote

    tag = releasing.release(version, message)
    if place := private_remote():
        print(f"note: the data is in {place}: only you, on this machine, can fetch it (docs/versions.md, A remote)")
    print(f"registered {tag}; next: git push origin {tag}")
