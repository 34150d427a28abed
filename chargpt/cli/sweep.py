"""`chargpt sweep` and `trial`: a search for better parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chargpt.errors import escape
from chargpt.project.outputs import refuse_own


def sweep(
    plan: Annotated[Path, typer.Argument(help="File that says what to vary, and where to run.")] = Path("sweep.yaml"),
    report: Annotated[Path | None, typer.Option(help="Write a page about the sweep, and run nothing.")] = None,
) -> None:
    """Run a search for better parameters: each trial is a DVC experiment, on this machine or on a cluster."""
    from chargpt.sweep.submit import SWEEPS, best, prepare, run

    refuse_own(report)
    if report is not None:
        from chargpt.sweep.page import write_page
        from chargpt.sweep.plan import load_plan
        from chargpt.sweep.study import open_sweep

        write_page(open_sweep(SWEEPS / load_plan(plan).name), report)
        print(f"wrote {escape(report)}")
        return
    begun = prepare(plan)
    run(begun, lambda line: print(escape(line, len(line)), flush=True))
    print(best(begun))


def trial(
    folder: Annotated[Path, typer.Argument(help="Directory of the sweep, as `chargpt sweep` shows it.")],
) -> None:
    """Run one trial of a sweep, or go on with an interrupted one, as any scheduler may call it."""
    from chargpt.sweep.study import open_sweep
    from chargpt.sweep.trial import run_trial

    print(escape(run_trial(open_sweep(folder)) or "nothing to do: the budget is spent"))
