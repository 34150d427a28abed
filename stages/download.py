"""Fetch Tiny Shakespeare to data/input.txt; with another corpus nothing is fetched and the file is empty."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from chargpt.errors import ChargptError
from stages import run

if TYPE_CHECKING:
    from chargpt.params import Params

OUTPUT = "data/input.txt"


def main(params: Params) -> None:
    from chargpt.download import download
    from chargpt.files import atomic_write

    if Path(params.corpus).resolve() == Path(OUTPUT).resolve():
        text = download()
        print(f"download: {len(text)} bytes of Tiny Shakespeare, checksum verified", file=sys.stderr)
    else:
        if not Path(params.corpus).is_file():
            raise ChargptError(f"params.yaml: corpus is {params.corpus!r}, and there is no such file")
        text = b""
        print(f"download: the corpus is {params.corpus}; nothing to fetch", file=sys.stderr)
    with atomic_write(OUTPUT) as file:
        file.write(text)


if __name__ == "__main__":
    run(main)
