"""`chargpt score`: how surprising lines or whole files are."""

from __future__ import annotations

import io
import json
import sys
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

import typer

from chargpt.cli.models import load, open_input
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
    language, bad, normal = load(model), list[int](), list[float]()

    def rows(file: Path) -> Iterator[Row]:
        for line, text, sums in _score_lines(language, file, after, bad):
            if above is not None and sums["bits"] <= above:
                continue
            if chars:
                yield from _characters(language, line, text, after)
                continue
            if normal:
                sums["percentile"] = round(100 * bisect_left(normal, sums["bits"]) / len(normal), 2)
            yield sums | {"text": text}

    if baseline:
        normal += sorted(sums["bits"] for _, _, sums in _score_lines(language, baseline, after, bad))
        if not normal:
            raise ChargptError(f"{baseline}: no lines; --baseline takes a text of normal lines")
    head = format == "tsv"
    for file in files or [Path("-")]:
        for row in [_score_file(language, file, after)] if total else rows(file):
            if head:
                print("\t".join(row))
                head = False
            print(_as_text(row, format), flush=total)
    if bad:
        raise ChargptError(f"{len(bad)} lines are not UTF-8, and were left out")


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


def _score_lines(language: LanguageModel, file: Path, after: str, bad: list[int]) -> Iterator[tuple[int, str, Row]]:
    """Each line: its number, its text, and its columns. Lines that are not UTF-8 are reported, and added to `bad`."""
    number = 0
    with open_input(file) as stream:
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
            columns = map(_columns, scores.bits.tolist(), scores.lengths.tolist(), scores.unknown.tolist())
            yield from zip(texts.keys(), texts.values(), columns, strict=True)
            print(end="", flush=True)  # the next line of a stream may be far


def _score_file(language: LanguageModel, file: Path, after: str) -> Row:
    """The row of a whole file, read in pieces that end where a window does: as one text, in constant memory."""
    from chargpt.inference.sampling import kept_characters

    kept = kept_characters(language.config)
    step, sums = WINDOWS * (language.config.block_size + 1 - kept), [0.0, 0, 0]
    with open_input(file) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig")
        try:
            while piece := text.read(step if sums[1] else step + kept - 1):
                scores = language.score(piece, after)
                found = (scores.bits, scores.lengths, scores.unknown)
                sums, after = [a + b.item() for a, b in zip(sums, found, strict=True)], piece[-kept:]
        except UnicodeDecodeError:
            raise ChargptError(f"{file}: not UTF-8; save the text as UTF-8") from None
    return _columns(*sums) | {"file": str(file)}


def _columns(bits: float, characters: float, unknown: float) -> Row:
    per_char = round(bits / max(1, characters), 4)
    return {"bits": round(bits, 4), "bits_per_char": per_char, "characters": characters, "unknown": unknown}


def _characters(language: LanguageModel, line: int, text: str, after: str) -> Iterator[Row]:
    for character, bits, rank, likeliest in language.predictions(text, after):
        likelier = "".join(other for other, _ in likeliest[: rank and rank - 1])
        yield {"line": line, "bits": round(bits, 4), "rank": rank, "character": character, "likelier": likelier}


def _as_text(row: Row, format: str) -> str:
    """A row as JSON or with tabs; characters that do not print are escaped, so it is one line."""
    if format == "jsonl":
        return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in json.dumps(row, ensure_ascii=False))
    return "\t".join("" if value is None else escape(value, len(str(value))) for value in row.values())
