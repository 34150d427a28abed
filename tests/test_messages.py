"""Every message of an error says what to do, and every error is a ChargptError."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

import chargpt.legacy.dialect  # noqa: F401 (a subclass of ChargptError)
from chargpt.errors import ChargptError, escape
from tests.pipeline import ROOT

# how a remedy begins, behind a punctuation mark or a bracket
REMEDY = re.compile(
    r"(^|[;:,(.] |\u2026 to )(or |to |and )?(in CI )?"
    r"(use|run|type|give|pass|name|try|choose|set|save|fetch|free|lower|keep|correct|replace|move|copy|put|write|train|export|install"
    r"|commit|leave|update|wait|check|add|undo|look|it (must|should)|expected|is there a tab|it needs)\b",
    re.IGNORECASE,
)


def template(node: ast.expr | None) -> str:
    """A message with \u2026 for what varies; names in capitals stand for the project's own sentences."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(template, node.values))
    if isinstance(node, ast.BinOp):
        return template(node.left) + template(node.right)
    if isinstance(node, ast.FormattedValue):
        inner = ast.unparse(node.value)
        return f"use {inner}" if inner in ("REMEDY", "AGAIN") or inner.startswith(("remedy(", "FLAT.")) else "\u2026"
    return "\u2026"


def messages() -> Iterator[tuple[str, str]]:
    """Where the code tells a user of something wrong, and what it says there."""
    errors = {"ChargptError", *(kind.__name__ for kind in ChargptError.__subclasses__())}
    for path in sorted([*ROOT.glob("chargpt/**/*.py"), *ROOT.glob("stages/*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            said: list[ast.expr | None] = []
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                whose = getattr(getattr(node.func, "value", None), "id", "")
                if name in errors | {"_fail"} or (name == "append" and whose in ("problems", "lines")):
                    said = list(node.args[:1])
            elif (
                isinstance(node, ast.AugAssign) and isinstance(node.value, ast.ListComp) and path.name == "directory.py"
            ):
                said = [node.value.elt]
            elif isinstance(node, ast.Yield) and path.name == "check.py":
                said = [node.value]
            elif isinstance(node, ast.FunctionDef) and node.name == "_first_bad_line":
                said = [inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return)]
            for expression in said:
                text = re.sub("\u2026+", "\u2026", template(expression))
                if re.search(r"\w{3}", text):  # the others hand on what another library says
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", text  # type: ignore[attr-defined]


def test_every_message_carries_its_remedy() -> None:
    """What is expected is enough where the mistake is in a caller's own code; two are continued by other messages."""
    said = list(messages())
    assert len(said) > 100
    enough = ("is not a single character", "in code-point order", "at least one", "is not a multiple of")
    enough += (
        "is outside the vocabulary of",
        "; the vocabulary has",
        "unknown key",
        "not migrated, nothing was written",
    )
    lacking = [(place, text) for place, text in said if not REMEDY.search(text)]
    assert [entry for entry in lacking if not any(words in entry[1] for words in enough)] == []


def test_a_message_without_a_remedy_would_be_seen() -> None:
    assert not REMEDY.search("data/x: the file is broken")
    assert REMEDY.search("data/x: the file is broken; fetch it again")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("\x1b[31m", r"\x1b[31m"),
        ("é☃", "é☃"),
        ("\ud800", r"\ud800"),
        (7, "7"),
        ("x" * 300, "x" * 200),
    ],
)
def test_escape(value: object, shown: str) -> None:
    assert escape(value) == shown
