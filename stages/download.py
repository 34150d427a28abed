"""Fetch Tiny Shakespeare to data/input.txt; with another corpus nothing is fetched and the file is empty."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from stages import run

if TYPE_CHECKING:
    from chargpt.params import Params


def main(params: Params) -> None:
    from chargpt.download import OUTPUT, download, is_downloaded
    from chargpt.files import atomic_write

    if is_downloaded(params.corpus):
        text = download()
        print(f"download: {len(text)} bytes of Tiny Shakespeare, checksum verified", file=sys.stderr)
    else:
        text = b""
        print(f"download: the corpus is {params.corpus}; nothing to fetch", file=sys.stderr)
    with atomic_write(OUTPUT) as file:
        file.write(text)


if __name__ == "__main__":
    run(main)
