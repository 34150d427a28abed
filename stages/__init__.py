"""One script per stage of dvc.yaml: parameters and files in, one library call, files out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from chargpt.errors import one_line_errors

if TYPE_CHECKING:
    from chargpt.params import Params


def run(main: Callable[[Params], None]) -> None:
    """Run a stage: what ends it early is told in one line, before any work where it can be seen before.

    A stage imports inside its `main`, because loading torch is the longest part of most of them, and can be
    interrupted or run out of memory like the rest.
    """
    with one_line_errors():
        from chargpt.git import refuse_untracked_code
        from chargpt.params import load_params

        refuse_untracked_code()
        main(load_params())
