"""Report expected failures in one line, with an exit status: 1 error, 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType, ModuleType
from typing import NoReturn

from chargpt.errors import ChargptError, escape

# SIGHUP: the terminal was closed. SIGUSR1 and SIGUSR2: what schedulers of clusters send before the time is over.
ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


class Terminated(BaseException):
    """A signal of ENDING arrived. As an exception, it lets `finally` blocks remove half-written files.

    Its argument is the signal's number.
    """


NO_MEMORY = re.compile(
    "out of memory|not enough memory|can(no|')t allocate|failed to allocate|bad_?alloc|failed to map segment"
    "|can't start new thread",
    re.IGNORECASE,
)  # messages of torch, the loader of shared libraries and Python


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Report an expected failure in one line on stderr and exit with 1, instead of a traceback.

    Ctrl-C exits with 130, a signal of ENDING with 128 and its number. Any other exception is a defect of chargpt and
    keeps its traceback.
    """
    _reopen_standard_streams()
    for number in ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:  # `nohup` ignores SIGHUP, and that stays so
            signal.signal(number, _terminate)
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()  # now, while a full disk or a closed pipe can still be reported
    except ChargptError as error:
        _fail(*error.args)
    except (MemoryError, RuntimeError, ImportError, OSError) as error:
        code = error.errno if isinstance(error, OSError) else None
        if isinstance(error, MemoryError) or code == errno.ENOMEM or NO_MEMORY.search(str(error)):
            _fail("not enough memory; free some, or use a smaller model (n_layer, n_embd), batch_size or block_size")
        if isinstance(error, ModuleNotFoundError) and str(error.name).split(".")[0] not in ("chargpt", "stages"):
            _fail(f"{error.name} is not installed; run: pip install 'chargpt[pipeline]'")
        if not isinstance(error, OSError):
            raise
        silence_stdout()
        if code in (errno.ENOSPC, errno.EDQUOT):
            _fail(f"{error.filename or 'output'}: no disk space left; free some space and run the same command again")
        _fail(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the exit
        _end(130, "interrupted")
    except Terminated as signalled:
        _end(128 + signalled.args[0], "terminated")


def import_undisturbed(name: str) -> ModuleType:
    """Import a module. A signal that arrives meanwhile takes effect after the import.

    While torch loads numpy, its own code discards the exception that a signal raises. The signal would be lost, or a
    module would stay half loaded.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, *ENDING))
    try:
        return import_module(name)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _terminate(number: int, _: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the cleanup
    raise Terminated(number)


def _end(status: int, word: str) -> NoReturn:
    with suppress(OSError):  # after SIGHUP, the terminal is gone
        print(word, file=sys.stderr)
    sys.exit(status)


def _fail(*lines: str) -> NoReturn:
    """Exit with status 1 and a message. Its control characters, which may come from a stranger's file, are escaped."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # torchrun sends it after a failure; the exit must go on
    sys.exit("\n".join(("" if line[:1] == " " else "error: ") + escape(line, len(line)) for line in lines))


def _reopen_standard_streams() -> None:
    """Reopen closed standard streams on the null device.

    Otherwise a file that chargpt opens could get the descriptor of such a stream, and printed text would end up in it.
    """
    with suppress(OSError):  # no free descriptor: then none of the three is closed
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 (it stays open)


def silence_stdout() -> None:
    """Send stdout to the null device. Python flushes stdout again at exit, and would report the failure again."""
    if sys.stdout is not None:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def one_line(error: Exception) -> str:
    """The message of another library's error, as one line of at most 400 characters."""
    return " ".join(str(error).split())[:400] or type(error).__name__
