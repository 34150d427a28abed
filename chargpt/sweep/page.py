"""A page about a sweep: Optuna's own pictures and a table of the trials, in one file that needs no network."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from chargpt.errors import ChargptError
from chargpt.files import write_text
from chargpt.sweep.study import Sweep


def write_page(sweep: Sweep, output: Path) -> None:
    """Write the page. Raises ChargptError if no trial was completed yet."""
    complete = [trial for trial in sweep.study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    if not complete:
        raise ChargptError(f"sweep {sweep.plan.name}: no trial was completed yet; type: chargpt sweep")
    rows = sorted(complete, key=lambda trial: trial.value or 0.0, reverse=sweep.plan.direction == "maximize")
    states = [trial.state.name.lower() for trial in sweep.study.get_trials(deepcopy=False)]
    page = Environment(loader=PackageLoader("chargpt.sweep", "."), autoescape=True).get_template("page.html.j2")
    text = page.render(
        plan=sweep.plan,
        baseline=sweep.baseline[:10],
        counts={state: states.count(state) for state in sorted(set(states))},
        pictures=dict(_pictures(sweep)),
        names=list(sweep.plan.space),
        rows=[(sweep.experiment(trial.number), trial.params, trial.value) for trial in rows],
        failed=[
            (sweep.experiment(trial.number), trial.user_attrs.get("error", "no reason is known"))
            for trial in sweep.study.get_trials(deepcopy=False)
            if trial.state.name == "FAIL"
        ],
    )
    write_text(output, text)


def _pictures(sweep: Sweep) -> Iterator[tuple[str, str]]:
    """Title and SVG of each picture that Optuna can draw; importance needs at least two different trials."""
    import warnings

    import matplotlib
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.visualization import matplotlib as draw

    matplotlib.use("agg")
    ways: list[tuple[str, Callable[[], Any]]] = [
        ("History", lambda: draw.plot_optimization_history(sweep.study, target_name=sweep.plan.objective)),
        (
            "Importance of the parameters",
            lambda: draw.plot_param_importances(
                sweep.study, evaluator=PedAnovaImportanceEvaluator(), target_name=sweep.plan.objective
            ),
        ),
        ("Parallel coordinates", lambda: draw.plot_parallel_coordinate(sweep.study, target_name=sweep.plan.objective)),
        ("Each parameter", lambda: draw.plot_slice(sweep.study, target_name=sweep.plan.objective)),
    ]
    with warnings.catch_warnings(action="ignore"), matplotlib.rc_context({"svg.hashsalt": sweep.plan.name}):
        from matplotlib import pyplot
        from matplotlib.ticker import LogLocator, NullFormatter

        for title, way in ways:
            try:
                way()
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
