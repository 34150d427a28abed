"""The `chargpt` command and `python -m chargpt`: reports expected failures in one line, from the first import on."""

import io
import sys

from chargpt.app.one_line import one_line_errors


def main() -> None:
    """Run the command that the arguments name."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may be what the terminal cannot show
    with one_line_errors():
        from chargpt.app.cli import app

        app()


if __name__ == "__main__":
    main()
