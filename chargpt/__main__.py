"""The entry point of the `chargpt` command and of `python -m chargpt`.

Expected failures are reported in one line, including failures while modules are imported.
"""

import io
import sys

from chargpt.runtime.exits import one_line_errors


def main() -> None:
    """Run the command that the arguments name."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a path may contain characters that the terminal's encoding does not have
        sys.stdout.reconfigure(errors="backslashreplace")
    with one_line_errors():
        from chargpt.cli.app import app

        app()


if __name__ == "__main__":
    main()
