"""The one error type that users can cause, and how a program reports it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class ChargptError(ValueError):
    """A mistake in what chargpt was given: the message names the file, line or key and what to do."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what a user can cause into one line on stderr and exit status 1, instead of a traceback.

    Ctrl-C exits with 130; a reader that closed our output (`chargpt generate | head`) with 0, quietly.
    Anything else is a defect of ours and keeps its traceback.
    """
    try:
        yield
    except ChargptError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:
        # Python flushes stdout once more at exit and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            sys.exit(f"error: {error.filename or 'output'}: no space left on the disk; free some and run again")
        sys.exit(f"error: {error.filename or 'input or output'}: {error.strerror or error}")
    except MemoryError:
        sys.exit("error: not enough memory; use a smaller model (n_layer, n_embd), batch_size or block_size")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
