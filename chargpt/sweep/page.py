"""A page about a sweep: Optuna's own pictures and a table of the trials, in one file that needs no network."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.ticker import LogLocator, NullFormatter
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.visualization import matplotlib as draw

from chargpt.errors import ChargptError
from chargpt.files import write_text
from chargpt.sweep.study import Sweep
from chargpt.templates import render


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
    importances = partial(draw.plot_param_importances, evaluator=PedAnovaImportanceEvaluator())
    with warnings.catch_warnings(action="ignore"), matplotlib.rc_context({"svg.hashsalt": sweep.plan.name}):
        for title, plot in (
            ("History", draw.plot_optimization_history),
            ("Importance of the parameters", importances),
            ("Parallel coordinates", draw.plot_parallel_coordinate),
            ("Each parameter", draw.plot_slice),
        ):
            try:
                plot(sweep.study, target_name=sweep.plan.objective)
            except (ValueError, RuntimeError):  # too few trials for this picture
                continue
            figure = pyplot.gcf()
            figure.set_size_inches(max(9, 2 * len(figure.axes)), 4.5)
            for axes in figure.axes:
                if axes.get_xscale() == "log":  # Optuna's labels overlap
                    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
                    axes.xaxis.set_major_formatter("{x:g}")
                    axes.xaxis.set_minor_formatter(NullFormatter())
            image = io.StringIO()
            figure.savefig(image, format="svg", bbox_inches="tight", metadata={"Date": None})
            pyplot.close("all")
            yield title, image.getvalue()[image.getvalue().index("<svg") :]
