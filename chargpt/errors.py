"""The one error type that users can cause, and how a program reports it."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn


class ChargptError(ValueError):
    """A mistake in what chargpt was given: the message names the file, line or key and what to do."""


def shown(value: object, length: int = 200) -> str:
    """What a stranger's file says, as part of one line: its start, with control characters written out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value)[:length])


class Terminated(BaseException):
    """SIGTERM arrived; an exception, so that half-written files are removed on the way out."""


NO_MEMORY = re.compile(
    "out of memory|not enough memory|can(no|')t allocate|failed to allocate|bad_?alloc|failed to map segment"
    "|can't start new thread",
    re.IGNORECASE,
)  # in the words of torch, ONNX Runtime, the loader of libraries, Python


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what a user can cause into one line on stderr and exit status 1, instead of a traceback.

    Ctrl-C exits with 130, SIGTERM with 143. Anything else is a defect of ours and keeps its traceback.
    """
    _occupy_standard_streams()
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a full disk or a closed pipe can still be reported
    except ChargptError as error:
        _fail(str(error))
    except (MemoryError, RuntimeError, ImportError, OSError) as error:
        code = error.errno if isinstance(error, OSError) else None
        if isinstance(error, MemoryError) or code == errno.ENOMEM or NO_MEMORY.search(str(error)):
            _fail("not enough memory; free some, or use a smaller model (n_layer, n_embd), batch_size or block_size")
        if not isinstance(error, OSError):
            raise
        silence_stdout()
        if code in (errno.ENOSPC, errno.EDQUOT):
            _fail(f"{error.filename or 'output'}: no space left on the disk; free some and run again")
        _fail(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one must not disturb the ending
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Terminated:
        print("terminated", file=sys.stderr)
        sys.exit(143)


def _terminate(number: int, _: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # a second one must not stop the tidying up
    raise Terminated


def _fail(message: str) -> NoReturn:
    """End with a message in which control characters of a stranger's file are written out."""
    sys.exit("error: " + "\n".join(shown(line, len(line)) for line in message.split("\n")))


def _occupy_standard_streams() -> None:
    """Where our starter closed one, a file that we open would take its place and get what is printed."""
    with suppress(OSError):  # no descriptor left: then none of the three is closed
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 (for good)


def silence_stdout() -> None:
    """Python flushes stdout once more at exit and would complain there."""
    if sys.stdout is not None:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
