from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import chargpt as library
from chargpt.model.file import save_model
from chargpt.model.gpt import GPT
from chargpt.text.vocab import Vocab
from tests.conftest import chargpt
from tests.pipeline import ROOT

TEXT = "abc def\n\na\tb\x07\u202e\nZ\u00e9\r\nhead"
LINES = ["abc def", "", "a\tb\x07\u202e", "Z\u00e9", "head"]


@pytest.fixture
def folder(tmp_path: Path, model: GPT, vocab: Vocab) -> Path:
    save_model(tmp_path / "artifacts/model.safetensors", model, vocab)
    (tmp_path / "x.txt").write_bytes(TEXT.encode())
    return tmp_path


def rows(output: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(output), delimiter="\t", quoting=csv.QUOTE_NONE))


def records(*arguments: str, cwd: Path, input: str | bytes = "") -> list[dict[str, Any]]:
    done = chargpt("score", "--format", "jsonl", *arguments, cwd=cwd, input=input)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_score_shows_each_line(folder: Path) -> None:
    """As columns and as JSON, from a file and from standard input; nothing that does not print reaches the terminal."""
    scores = library.load(folder / "artifacts/model.safetensors").score(LINES)
    done = chargpt("score", "x.txt", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.replace("\n", "").replace("\t", "").isprintable()
    table = rows(done.stdout)
    assert list(table[0]) == ["bits", "bits_per_char", "characters", "unknown", "text"]
    found = records("-", cwd=folder, input=b"\xef\xbb\xbf" + TEXT.encode())
    assert [record["text"] for record in found] == LINES
    assert [row["text"] for row in table] == ["abc def", "", "a\\tb\\x07\\u202e", "Z\u00e9", "head"]
    for row, record, bits, unknown in zip(table, found, scores.bits, scores.unknown, strict=True):
        assert float(row["bits"]) == record["bits"] == pytest.approx(bits, abs=1e-4)
        assert record["bits_per_char"] == pytest.approx(bits / max(1, record["characters"]), abs=1e-4)
        assert (record["unknown"], record["characters"]) == (unknown, len(record["text"]))


def test_score_above_and_percentiles(folder: Path) -> None:
    everything = records("x.txt", cwd=folder)
    limit = sorted(record["bits"] for record in everything)[2]
    surprising = records("x.txt", "--above", str(limit), "x.txt", cwd=folder)
    assert surprising == 2 * [record for record in everything if record["bits"] > limit]
    compared = records("--baseline", "x.txt", cwd=folder, input=TEXT)
    assert sorted(record.pop("percentile") for record in compared) == [0, 20, 40, 60, 80]
    assert compared == everything
    started = records("--after", "ab", cwd=folder, input="head")[0]["bits"]
    assert started == pytest.approx(
        library.load(folder / "artifacts/model.safetensors").score("head", after="ab").bits[0], abs=1e-4
    )


def test_score_shows_each_character(folder: Path) -> None:
    shown = records("--chars", cwd=folder, input="ab\n\nbZ")
    assert [(record["line"], record["character"]) for record in shown] == [(1, "a"), (1, "b"), (3, "b"), (3, "Z")]
    model = library.load(folder / "artifacts/model.safetensors")
    for record, expected in zip(shown, [*model.predictions("ab"), *model.predictions("bZ")], strict=True):
        assert (record["rank"], record["bits"]) == (expected.rank, pytest.approx(expected.bits, abs=1e-4))
        likelier = "".join(character for character, _ in expected.likeliest)
        assert record["likelier"] == (likelier if expected.rank is None else likelier[: expected.rank - 1])
    assert rows(chargpt("score", "--chars", cwd=folder, input="Z").stdout)[0]["rank"] == ""


def test_score_of_whole_files_is_that_of_one_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in pieces of any number of windows."""
    (folder / "y.txt").write_text("abc de\nfgh " * 40, newline="\n")
    expected = library.load(folder / "artifacts/model.safetensors").score("abc de\nfgh " * 40)
    for windows in (1, 3, 2048):
        monkeypatch.setattr("chargpt.cli.score.WINDOWS", windows)
        found = records("--total", "y.txt", "x.txt", cwd=folder)
        assert found[0]["bits"] == pytest.approx(expected.bits[0], abs=1e-3)
        assert (found[0]["characters"], found[0]["file"], found[1]["unknown"]) == (440, "y.txt", 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.txt"], "error: none.txt: No such file or directory"),
        (["--total", "bad.txt"], "error: bad.txt: not UTF-8; save the text as UTF-8"),
        (["--total", "--chars"], "error: --total shows whole files; leave --chars, --above and --baseline out"),
        (["--baseline", "empty.txt"], "error: empty.txt: no lines; --baseline takes a text of normal lines"),
        (["--after", "", "x.txt"], "error: a text begins after something: give at least one character"),
    ],
)
def test_score_reports_errors_in_one_line(folder: Path, arguments: list[str], message: str) -> None:
    (folder / "bad.txt").write_bytes(b"a\xff")
    (folder / "empty.txt").write_bytes(b"")
    done = chargpt("score", *arguments, cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message + "\n")


def test_lines_that_are_not_utf_8_are_left_out_and_counted(folder: Path) -> None:
    done = chargpt("score", cwd=folder, input=b"ab\nc\xff\nde\n\xfe")
    assert [row["text"] for row in rows(done.stdout)] == ["ab", "de"]
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "-: line 2: byte 1 is not UTF-8; left out",
        "-: line 4: byte 0 is not UTF-8; left out",
        "error: 2 lines are not UTF-8, and were left out",
    ]


@pytest.mark.system
def test_a_stream_is_scored_line_by_line(folder: Path) -> None:
    """Each line while the pipe is still open; the end of a line may come later."""
    command = [sys.executable, "-m", "chargpt", "score", "--format", "jsonl"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=folder, env=environment, bufsize=0, **pipes) as process:
        for part, text in ((b"abc\nde", "abc"), (b"f\n", "def"), (b"\n", "")):
            process.stdin.write(part)
            assert json.loads(process.stdout.readline())["text"] == text
        process.stdin.close()
        assert process.stdout.read() == b""


def test_generate_stops(folder: Path) -> None:
    options = ["--prompt", "abc", "--seed", "1", "--max-tokens", "60", "--num-samples", "2"]
    whole, short = (chargpt("generate", *options, *stop, cwd=folder) for stop in ([], ["--stop", "a", "--stop", "bb"]))
    assert short.returncode == 0, short.stderr
    long, cut = (done.stdout.split("=== sample ") for done in (whole, short))
    for text, stopped in zip(long[1:], cut[1:], strict=True):
        new = text[text.index("abc") + 3 :].strip("\n")
        ends = [new.index(stop) for stop in ("a", "bb") if stop in new]
        assert stopped.strip("\n").endswith("abc" + new[: min(ends, default=len(new))])
    model = library.load(folder / "artifacts/model.safetensors")
    text = chargpt("generate", "--prompt", "abc", "--seed", "1", "--stop", "a", cwd=folder).stdout
    assert text == model.generate("abc", seed=1, stop="a") + "\n"
