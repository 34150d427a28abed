"""The documents, and the blocks of commands in them."""

from __future__ import annotations

import re

from tests.pipeline import ROOT

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
}


def blocks(page: str, heading: str = "", language: str = "bash") -> list[str]:
    """The code blocks under a heading of a page, or all of the page."""
    section = PAGES[page].partition(f"\n## {heading}\n")[2].partition("\n## ")[0] if heading else PAGES[page]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
