"""The one error type that users can cause, and how a program reports it."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class ChargptError(ValueError):
    """A mistake in what chargpt was given: the message names the file, line or key and what to do."""


def shown(value: object, length: int = 200) -> str:
    """What a stranger's file says, as part of one line: its start, with control characters written out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value)[:length])


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what a user can cause into one line on stderr and exit status 1, instead of a traceback.

    Ctrl-C exits with 130; a reader that closed our output (`chargpt generate | head`) with 0, quietly.
    Anything else is a defect of ours and keeps its traceback.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a full disk or a closed pipe can still be reported
    except ChargptError as error:
        _fail(str(error))
    except BrokenPipeError:
        _silence_stdout()
        sys.exit(0)
    except OSError as error:
        _silence_stdout()
        if error.errno == errno.ENOSPC:
            _fail(f"{error.filename or 'output'}: no space left on the disk; free some and run again")
        _fail(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search(
            "out of memory|not enough memory|can't allocate", str(error)
        ):
            raise
        _fail("not enough memory; use a smaller model (n_layer, n_embd), batch_size or block_size")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _fail(message: str) -> NoReturn:
    """End with a message in which control characters of a stranger's file are written out."""
    sys.exit("error: " + "\n".join(shown(line, len(line)) for line in message.split("\n")))


def _silence_stdout() -> None:
    """Python flushes stdout once more at exit and would complain there."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
