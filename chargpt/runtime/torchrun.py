"""Run the train stage in several processes, which torchrun starts."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys

from chargpt.errors import ChargptError
from chargpt.runtime.exits import ENDING
from chargpt.training.events import Rank


def rank() -> Rank | None:
    """Which process of a training this is, from torchrun's environment variables; None if torchrun did not start it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    return Rank(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


def launch(options: list[str], module: str, *arguments: str) -> None:
    """Run a module in several processes with torchrun.

    options: those of torchrun. Its environment variables may name further machines. If a process fails, it prints the
    reason, and this function exits with the same status. Raises ChargptError if a signal ended the first process that
    failed.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    first = os.environ.get("PET_MASTER_ADDR", "127.0.0.1")
    if "--standalone" in options or "PET_NNODES" not in os.environ:
        first = "127.0.0.1"
        options = [*options, "--local-addr", first]  # not the host's name, which may have no address
    try:
        socket.getaddrinfo(first, None)
    except OSError as error:  # torchrun would try for ten minutes, deaf to signals
        raise ChargptError(f"PET_MASTER_ADDR is {first!r}: {error.strerror}; set the first machine's address") from None
    # torch would log pages of text about an error that is reported in one line
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # torchrun hands these on to the processes, which then save
    os.environ.setdefault(
        "TORCHELASTIC_SIGNALS_TO_HANDLE", ",".join(signal.Signals(s).name for s in (signal.SIGINT, *ENDING))
    )
    try:
        run.run(run.parse_args([*options, "-m", module, *arguments]))
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        failed, failure = error.get_first_failure()
        if failure.exitcode > 0:
            sys.exit(failure.exitcode)
        name = signal.Signals(-failure.exitcode).name
        raise ChargptError(
            f"rank {failed} was ended by {name}; run the same command to continue from the last checkpoint"
        ) from None
