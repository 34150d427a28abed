"""The train stage in several processes, which torchrun starts."""

from __future__ import annotations

import logging
import os
import signal
import sys

from chargpt.errors import ChargptError
from chargpt.training.monitor import ALONE, Place


def place() -> Place:
    """Which process of a training this is, in the environment variables that torchrun sets for those it starts."""
    if not launched():
        return ALONE
    return Place(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


def launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launch(options: list[str], module: str, *arguments: str) -> None:
    """Run a module in several processes with torchrun, on this machine and those that its environment names.

    Exits as the first process that fails, which says why itself. Raises ChargptError if a signal ended it.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # pages about what is said in a line
    try:
        run.run(run.parse_args([*options, "-m", module, *arguments]))
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            sys.exit(failure.exitcode)
        name = signal.Signals(-failure.exitcode).name
        raise ChargptError(f"process {rank} was ended by {name}; run again, training goes on where it was") from None
