"""Compile loops over numbers to machine code, once for each machine. Numba compiles; its result is kept on disk."""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import caching, serialize

from chargpt.errors import ChargptError

if numba.config.DISABLE_JIT:
    raise ChargptError("NUMBA_DISABLE_JIT is set, and the generator must be compiled; run: unset NUMBA_DISABLE_JIT")

Function = TypeVar("Function", bound=Callable[..., Any])

# What the compiler may do so that sums and products run in vector registers: change their order, and join a product and
# a sum. It may not assume that numbers are finite.
FAST_MATH = {"reassoc", "contract", "nsz"}

# for functions that only compiled functions call, and that become part of them
inlined: Callable[[Function], Function] = numba.njit(nogil=True, fastmath=FAST_MATH, error_model="numpy")
# likewise, but sums are computed in the order that is written
inlined_in_order: Callable[[Function], Function] = numba.njit(
    nogil=True, fastmath=FAST_MATH - {"reassoc"}, error_model="numpy"
)


class ByContent(caching.UserWideCacheLocator):  # type: ignore[misc]
    """Where compiled code is kept: in the user's cache directory, by the content of the source file.

    So all copies of the project, and all experiments, share it. `compiled.py` and `vectors.py`, which it uses, count as
    its content.
    """

    def __init__(self, py_func: Callable[..., Any], py_file: str) -> None:
        super().__init__(py_func, py_file)
        files = (Path(py_file), Path(__file__), Path(__file__).with_name("vectors.py"))
        content = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        self._cache_path: str = str(Path(super().get_cache_path()).with_name(f"chargpt_{content[:16]}"))


class Files(caching.CompileResultCacheImpl):  # type: ignore[misc]
    """How compiled code becomes files: with a checksum, because damaged code would end the process."""

    _locator_classes = [ByContent]  # noqa: RUF012

    def reduce(self, result: Any) -> tuple[str, bytes]:
        """What is kept of a compiled function."""
        code: bytes = serialize.dumps(super().reduce(result))
        return hashlib.sha256(code).hexdigest(), code

    def rebuild(self, target_context: Any, kept: tuple[str, bytes]) -> Any:
        """The compiled function again. Raises ValueError if the code is damaged."""
        checksum, code = kept
        if hashlib.sha256(code).hexdigest() != checksum:
            raise ValueError("damaged")
        return super().rebuild(target_context, pickle.loads(code))  # numba's own format, written here by this user


class Cache(caching.FunctionCache):  # type: ignore[misc]
    """Compiled code on disk. Without a directory, disk space or undamaged files, the code is compiled again."""

    _impl_class = Files

    def __init__(self, function: Callable[..., Any]) -> None:
        with suppress(RuntimeError):  # no directory can be written: then each use below raises AttributeError
            super().__init__(function)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The code for these types, or None."""
        found = None
        try:
            found = super().load_overload(sig, target_context)
        except Exception:  # damaged files raise errors of many types
            with suppress(OSError, AttributeError):
                self.flush()
        if found is None:
            announce()
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the code for these types, if there is disk space."""
        with suppress(OSError, AttributeError):
            super().save_overload(sig, data)


@cache
def announce() -> None:
    """Report that the code is being compiled, which takes seconds."""
    logging.getLogger(__name__).warning("compiling the generator for this machine, once: some 5 seconds")


def compiled(function: Function) -> Function:
    """Decorator: the function as machine code, for callers in Python. It is compiled at its first call, or loaded."""
    made = inlined(function)
    made._cache = Cache(function)  # type: ignore[attr-defined]
    return made
