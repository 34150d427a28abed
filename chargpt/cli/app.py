"""The `chargpt` command. Heavy imports happen inside the commands, so that --help answers at once."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from chargpt.cli.generate import generate
from chargpt.cli.models import export, inspect, migrate
from chargpt.cli.project import check, gate, release, report
from chargpt.cli.score import score
from chargpt.cli.sweep import sweep, trial
from chargpt.runtime.exits import one_line_errors, silence_stdout


class OneLineErrors(TyperGroup):
    """Command group that reports errors in one line."""

    def invoke(self, ctx: Any) -> Any:
        with one_line_errors():
            try:
                result = super().invoke(ctx)
                if sys.stdout is not None:
                    sys.stdout.flush()
                return result
            except BrokenPipeError:  # the reader closed the pipe, as in `chargpt generate | head`
                silence_stdout()


app = typer.Typer(
    cls=OneLineErrors,
    help="A small character-level language model: generate and score text; migrate, export, check and release models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help starts faster
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(importlib.metadata.version("chargpt"))
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


for command in (generate, score, migrate, export, inspect, report, check, gate, release, sweep, trial):
    app.command()(command)
