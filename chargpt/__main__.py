"""`chargpt` and `python -m chargpt`: from the first import on, what ends it early is told in one line."""

import io
import sys

from chargpt.errors import one_line_errors


def main() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may be what the terminal cannot show
    with one_line_errors():
        from chargpt.cli import app

        app()


if __name__ == "__main__":
    main()
