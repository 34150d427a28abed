"""The runner, `python -m stages NAME`: checks params.yaml, runs one stage, and reports expected failures in one line.

It imports the module of the stage last, because loading torch takes seconds and much memory. An interruption or a lack
of memory is reported in one line from the first import on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from chargpt.errors import ChargptError
from chargpt.runtime.exits import import_undisturbed, one_line_errors

if TYPE_CHECKING:
    from chargpt.params import Params


def main() -> None:
    """Run the stage that the first argument names."""
    # the project last: a file such as random.py in it must not stand in for Python's; `chargpt` is already imported
    sys.path.append(sys.path.pop(0))
    with one_line_errors():
        from chargpt.project.git import refuse_untracked_code
        from chargpt.project.params_file import load_params
        from chargpt.runtime.signals import remember_dvc

        remember_dvc()
        names = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
        if len(sys.argv) != 2 or sys.argv[1] not in names:
            raise ChargptError(f"run: python -m stages NAME, with one of {', '.join(names)}")
        refuse_untracked_code()
        params = load_params()
        if sys.argv[1] in ("prepare", "train"):
            from chargpt.project.check import require_prompt  # loads numpy

            require_prompt(params)  # otherwise `sample` would find out, after the training
        run(sys.argv[1], params)


def run(name: str, params: Params) -> None:
    """Run a stage, and give it what it needs besides the parameters."""
    from chargpt.runtime import environment

    environment.limit_threads()
    if name == "train":
        train(params)
    else:
        cache = [environment.cache_folder()] if name == "download" else []
        import_undisturbed(f"stages.{name}").main(params, *cache)


def train(params: Params) -> None:
    """Run the train stage: train in this process, show progress, and stop on a signal or when DVC dies.

    If `launch` names torchrun, torchrun starts several processes instead, and each of them runs this function.
    """
    from chargpt.project.params_file import load_params
    from chargpt.project.pipeline import stage_deps
    from chargpt.runtime import environment, torchrun
    from chargpt.runtime.progress import Progress
    from chargpt.runtime.signals import StopRequests
    from chargpt.training.events import ALONE, Stopped

    rank = torchrun.rank()
    if params.launch != "python" and rank is None:
        return torchrun.launch(params.launch.split()[1:], "stages", "train")
    rank = rank or ALONE
    should_stop = StopRequests(rank.rank)
    should_stop.install()
    try:
        with Progress(environment.step_signal()) as progress:
            import_undisturbed("stages.train").main(
                params,
                report=progress,
                should_stop=should_stop,
                rank=rank,
                deps=stage_deps("train", params),
                checkpoints=environment.checkpoints(),
                reread=load_params,
                **environment.saving(),
            )
    except Stopped as stopped:
        sys.exit(stopped.status)
    except ChargptError:
        if rank.local_rank:
            sys.exit(1)  # the first process of this machine reports the same
        raise


if __name__ == "__main__":
    main()
