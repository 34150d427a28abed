"""`chargpt` and `python -m chargpt`: from the first import on, what ends it early is told in one line."""

from chargpt.errors import one_line_errors


def main() -> None:
    with one_line_errors():
        from chargpt.cli import app

        app()


if __name__ == "__main__":
    main()
