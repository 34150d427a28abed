"""Download Tiny Shakespeare to data/tinyshakespeare.txt, which is empty if the corpus is another file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from chargpt.files import atomic_write
from chargpt.paths import INPUT
from chargpt.text.download import download, is_default_corpus, require_corpus, unused_text

if TYPE_CHECKING:
    from chargpt.params import Params


def main(params: Params, cache: Path | None = None) -> None:
    """Download the text. cache: directory that keeps a verified copy; None keeps no copy."""
    require_corpus(params.corpus)
    if line := unused_text(params.corpus):
        print(f"note: {line}", file=sys.stderr)
    if is_default_corpus(params.corpus):
        text = download(cache)
        print(f"download: {len(text)} bytes of Tiny Shakespeare, checksum verified", file=sys.stderr)
    else:
        text = b""
        print(f"download: the corpus is {params.corpus}; nothing to download", file=sys.stderr)
    with atomic_write(INPUT) as file:
        file.write(text)
