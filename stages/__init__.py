"""One script per stage of dvc.yaml: files in, one library call, files out."""

from collections.abc import Callable

from chargpt.errors import one_line_errors
from chargpt.git import refuse_untracked_code


def run(main: Callable[[], None]) -> None:
    """Run a stage: a mistake of the user's ends it with one line, before any work where it can be seen before."""
    with one_line_errors():
        refuse_untracked_code()
        main()
