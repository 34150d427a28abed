"""A text coloured by a model's surprise, for pages. Does not load torch."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from chargpt.inference.facade import LanguageModel, Prediction
from chargpt.templates import render

LEVELS = 9  # of surprise; each is one bit wide, the last has no upper limit
SHOWN = 20_000  # characters of a text that a page shows; a browser is slow with many more
NAMES = {"\n": "\u23ce", " ": "\u2423", "\t": "\u21e5"}
TEMPLATE = Path(__file__).with_name("report.html.j2")


def text_page(language: LanguageModel, lines: Iterable[str]) -> str:
    """A page with lines, each scored as by `chargpt score`, up to SHOWN characters."""
    cells: list[dict[str, Any]] = []
    for line in lines:
        if len(cells) + len(line) > SHOWN and cells:
            break
        predictions = list(language.predictions(line))
        bits = sum(prediction.bits for prediction in predictions)
        cells.append({"shown": f"{bits:6.0f}  ", "level": 0, "about": "bits of the line", "ends": False})
        cells += [cell(prediction) for prediction in predictions]
        cells.append({"shown": visible("\n"), "level": 0, "about": "", "ends": True})
    facts = {"parameters": f"{language.config.parameters:,}"} | vars(language.config)
    return render(TEMPLATE, facts=facts, stretch=cells, levels=range(LEVELS), metrics=None)


def cell(prediction: Prediction) -> dict[str, Any]:
    """How a page shows a character of the coloured text: its form, level of surprise, and details on hover."""
    character, bits = prediction.character, prediction.bits
    lines = [f"{visible(character)}  {2**-bits:.1%}, {bits:.1f} bits", "", "expected:"]
    lines += [f"{'>' if other == character else ' '} {visible(other)}  {q:.1%}" for other, q in prediction.likeliest]
    shown = visible(character) if character == "\n" else printable(character)
    return {"shown": shown, "level": min(LEVELS - 1, int(bits)), "about": "\n".join(lines), "ends": character == "\n"}


def printable(text: str) -> str:
    """Running text in which characters that do not print, or reverse the text, are made visible."""
    return "".join(c if c == "\n" or c.isprintable() else visible(c) for c in text)


def visible(character: str) -> str:
    """A character in a visible form, for charts and tables.

    Space, tab and line end become symbols, and other characters that do not print become their code point, `U+0007`.
    """
    if character in NAMES:
        return NAMES[character]
    if unicodedata.combining(character):
        return "\u25cc" + character
    return character if character.isprintable() else f"U+{ord(character):04X}"
