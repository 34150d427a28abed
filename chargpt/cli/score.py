"""`chargpt score`: how surprising lines or whole files are."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

import typer

from chargpt.cli.models import load
from chargpt.errors import ChargptError, escape
from chargpt.paths import MODEL
from chargpt.runtime.environment import limit_threads

if TYPE_CHECKING:
    from chargpt.inference.facade import LanguageModel

BLOCK = 1 << 18  # bytes that are read at once, or what a pipe has
WINDOWS = 2048  # windows of a whole file that are scored at once
Row = dict[str, Any]


def score(
    files: Annotated[list[Path] | None, typer.Argument(help="Text files; -, or none: standard input.")] = None,
    model: Annotated[Path, typer.Option(help="Model file.")] = Path(MODEL),
    format: Annotated[Literal["tsv", "jsonl"], typer.Option(help="Columns with a header, or JSON lines.")] = "tsv",
    above: Annotated[float | None, typer.Option(help="Show only lines with more bits.")] = None,
    chars: Annotated[bool, typer.Option("--chars", help="A row per character: bits, rank, what was likelier.")] = False,
    total: Annotated[bool, typer.Option("--total", help="A row per file, which is read as one text.")] = False,
    baseline: Annotated[Path | None, typer.Option(help="File of normal lines: adds a line's percentile there.")] = None,
    after: Annotated[str, typer.Option(help="What a line begins after; by default, a line break.")] = "\n",
) -> None:
    """Show how surprising each line of a text is, in bits."""
    if total and (chars or baseline or above is not None):
        raise ChargptError("--total shows whole files; leave --chars, --above and --baseline out")
    limit_threads()
    language, head = load(model), format == "tsv"
    bad: list[int] = []
    normal = (
        sorted(row["bits"] for rows in _score_lines(language, baseline, after, bad) for row in rows) if baseline else []
    )
    if baseline and not normal:
        raise ChargptError(f"{baseline}: no lines; --baseline takes a text of normal lines")
    for file in files or [Path("-")]:
        blocks = iter([[_score_file(language, file, after)]]) if total else _score_lines(language, file, after, bad)
        for rows in blocks:
            for row in rows:
                if above is not None and row["bits"] <= above:
                    continue
                if normal:
                    row = _with_percentile(row, normal)
                line = row.pop("line", 0)
                for shown in _characters(language, line, row["text"], after) if chars else [row]:
                    if head:
                        print("\t".join(shown))
                        head = False
                    print(_as_text(shown, format))
            sys.stdout.flush()
    if bad:
        raise ChargptError(f"{len(bad)} lines are not UTF-8, and were left out")


def _open(file: Path) -> AbstractContextManager[BinaryIO]:
    if str(file) != "-":
        return file.open("rb")
    if sys.stdin is None:
        raise ChargptError("standard input is closed; give the path of a file")
    return nullcontext(sys.stdin.buffer)


def _lines(stream: BinaryIO) -> Iterator[list[bytes]]:
    """The lines of a stream, without their ends; a list of those that are there, as soon as there is one."""
    parts: list[bytes] = []
    while block := stream.read1(BLOCK):  # type: ignore[attr-defined]
        first, *others = block.split(b"\n")
        parts.append(first)
        if others:
            yield [b"".join(parts), *others[:-1]]
            parts = others[-1:]
    if any(parts):
        yield [b"".join(parts)]


def _score_lines(language: LanguageModel, file: Path, after: str, bad: list[int]) -> Iterator[list[Row]]:
    """A list of rows for each list of `_lines`. Lines that are not UTF-8 are reported, and added to `bad`."""
    number = 0
    with _open(file) as stream:
        for block in _lines(stream):
            texts = {}
            for line in block:
                number += 1
                try:
                    texts[number] = line.removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    print(f"{escape(file)}: line {number}: byte {error.start} is not UTF-8; left out", file=sys.stderr)
                    bad.append(number)
            scores = language.score(list(texts.values()), after)
            columns = (scores.bits.tolist(), scores.lengths.tolist(), scores.unknown.tolist())
            found = zip(texts.items(), *columns, strict=True)
            yield [{"line": number} | _row(*sums) | {"text": text} for (number, text), *sums in found]


def _score_file(language: LanguageModel, file: Path, after: str) -> Row:
    """The row of a whole file, read in pieces that end where a window does: as one text, in constant memory."""
    from chargpt.inference.sampling import kept_characters

    size, kept = language.config.block_size, kept_characters(language.config)
    step, bits, lengths, unknown = WINDOWS * (size + 1 - kept), 0.0, 0, 0
    with _open(file) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig")
        try:
            while piece := text.read(step if lengths else step + kept - 1):
                scores = language.score(piece, after)
                bits, lengths = bits + scores.bits[0], lengths + int(scores.lengths[0])
                unknown, after = unknown + int(scores.unknown[0]), piece[-kept:]
        except UnicodeDecodeError:
            raise ChargptError(f"{file}: not UTF-8; save the text as UTF-8") from None
    return _row(float(bits), lengths, unknown) | {"file": str(file)}


def _row(bits: float, characters: int, unknown: int) -> Row:
    per_char = round(bits / max(1, characters), 4)
    return {"bits": round(bits, 4), "bits_per_char": per_char, "characters": characters, "unknown": unknown}


def _with_percentile(row: Row, normal: list[float]) -> Row:
    """The row with the percentage of the normal lines that are less surprising, before its text."""
    from bisect import bisect_left

    text = row.pop("text")
    return row | {"percentile": round(100 * bisect_left(normal, row["bits"]) / len(normal), 2), "text": text}


def _characters(language: LanguageModel, line: int, text: str, after: str) -> Iterator[Row]:
    for character, bits, rank, likeliest in language.predictions(text, after):
        likelier = "".join(other for other, _ in likeliest[: rank and rank - 1])
        yield {"line": line, "bits": round(bits, 4), "rank": rank, "character": character, "likelier": likelier}


def _as_text(row: Row, format: str) -> str:
    """A row as JSON or with tabs; characters that do not print are escaped, so it is one line."""
    if format == "jsonl":
        text = json.dumps(row, ensure_ascii=False)
        return text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
    return "\t".join("" if value is None else escape(value, len(str(value))) for value in row.values())
