"""A page about a sweep: Optuna's own pictures and a table of the trials, in one file that needs no network."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot
from optuna.visualization import matplotlib as draw

from chargpt.errors import ChargptError
from chargpt.files import write_text
from chargpt.sweep.study import Sweep
from chargpt.templates import render

PICTURES: dict[str, Callable[..., Any]] = {
    "History": draw.plot_optimization_history,
    "Importance of the parameters": draw.plot_param_importances,
    "Parallel coordinates": draw.plot_parallel_coordinate,
}


def write_page(sweep: Sweep, output: Path) -> None:
    """Write the page. Raises ChargptError if no trial was completed yet."""
    trials = sweep.study.get_trials(deepcopy=False)
    states = [trial.state.name.lower() for trial in trials]
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    if not complete:
        raise ChargptError(f"sweep {sweep.plan.name}: no trial has been completed; run: chargpt sweep")
    complete.sort(key=lambda trial: trial.value or 0.0, reverse=sweep.plan.direction == "maximize")
    text = render(
        Path(__file__).with_name("page.html.j2"),
        sweep=sweep,
        counts={state: states.count(state) for state in sorted(set(states))},
        pictures=dict(_pictures(sweep)),
        complete=complete,
        failed=[trial for trial in trials if trial.state.name == "FAIL"],
    )
    write_text(output, text)


def _pictures(sweep: Sweep) -> Iterator[tuple[str, str]]:
    """Title and SVG of each picture that Optuna can draw; importance needs at least two different trials."""
    matplotlib.use("agg")
    for title, plot in PICTURES.items():
        with warnings.catch_warnings(action="ignore"), suppress(ValueError, RuntimeError):  # too few trials
            figure = plot(sweep.study, target_name=sweep.plan.objective).figure
            figure.set_size_inches(9, 4.5)
            image = io.StringIO()
            figure.savefig(image, format="svg", bbox_inches="tight")
            yield title, image.getvalue()[image.getvalue().index("<svg") :]
    pyplot.close("all")
