"""The documents speak of what exists: parameters, commands, options, files."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator

import pytest
import typer.main
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import chargpt.migration  # noqa: F401 (a subclass of ChargptError)
from chargpt.cli import app
from chargpt.errors import ChargptError
from chargpt.params import Params
from tests.pipeline import ROOT

DOCUMENTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "MIGRATION.md")}
COMMANDS = typer.main.get_command(app)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_parameters_named_after_S_exist(name: str) -> None:
    keys = set(re.findall(r"-S ['\"]?(\w+)=", DOCUMENTS[name])) - {"key", "name"}
    assert keys and keys <= set(Params.model_fields)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_and_options_exist(name: str) -> None:
    commands = COMMANDS.commands  # type: ignore[attr-defined]
    calls = re.findall(r"chargpt (generate|migrate|export|inspect|check|gate|release)\b([^`\n]*)", DOCUMENTS[name])
    assert calls
    for command, rest in calls:
        options = {option for p in commands[command].params for option in p.opts}
        assert set(re.findall(r"(--[\w-]+)", rest)) <= options, (command, rest)


def test_the_tree_lists_every_module() -> None:
    listed = set(re.findall(r"^  (\w+\.py) ", DOCUMENTS["README.md"], re.MULTILINE))
    assert listed == {p.name for p in (ROOT / "chargpt").glob("*.py")} - {"__init__.py", "__main__.py"}


def test_every_relative_link_leads_somewhere() -> None:
    for text in DOCUMENTS.values():
        for target in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert (ROOT / target).exists(), target


def messages() -> Iterator[tuple[str, str]]:
    """Where the code tells a user of something wrong, and what it says there, with \u2026 for what varies."""
    errors = {"ChargptError", *(kind.__name__ for kind in ChargptError.__subclasses__())}
    for path in sorted([*ROOT.glob("chargpt/*.py"), *ROOT.glob("stages/*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            said: list[ast.expr | None] = []
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                whose = getattr(getattr(node.func, "value", None), "id", "")
                stderr = any(keyword.arg == "file" for keyword in node.keywords)
                if (
                    name in errors | {"_fail"}
                    or (name == "append" and whose in ("problems", "lines", "failures"))
                    or (name == "print" and stderr and path.parent.name == "chargpt")
                ):
                    said = list(node.args[:1])
            elif isinstance(node, ast.AugAssign) and isinstance(node.value, ast.ListComp) and path.name == "legacy.py":
                said = [node.value.elt]
            elif isinstance(node, ast.Yield) and path.name == "project.py":
                said = [node.value]
            elif isinstance(node, ast.FunctionDef) and node.name == "_first_bad_line":
                said = [inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return)]
            for expression in said:
                text = re.sub("\u2026+", "\u2026", template(expression))
                if re.search(r"\w{3}", text):  # the others hand on what another library says
                    yield f"{path.name}:{node.lineno}", text  # type: ignore[attr-defined]


def template(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(template, node.values))
    if isinstance(node, ast.BinOp):
        return template(node.left) + template(node.right)
    return "\u2026"


def test_every_message_is_in_the_table_and_the_table_has_no_other() -> None:
    """A row names parts of messages between backticks, with ... for what varies; each needs its remedy."""
    table = DOCUMENTS["README.md"].partition("## Error messages")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*`) \| .{5,} \|$", table, re.MULTILINE)
    parts = [part.strip("` ") for row in rows for part in row.split("<br>")]
    patterns = {part: re.compile(re.escape(part).replace(r"\.\.\.", ".*"), re.DOTALL) for part in parts}
    said = list(messages())
    assert len(said) > 100 and len(patterns) == len(parts)
    assert [entry for entry in said if not any(p.search(entry[1]) for p in patterns.values())] == []
    assert [part for part, p in patterns.items() if not any(p.search(text) for _, text in said)] == []


def test_every_dependency_is_pinned_within_its_range() -> None:
    """constraints.txt is what the tests ran with; torch is pinned in pyproject.toml itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [Requirement(line) for line in [*project["dependencies"], *project["optional-dependencies"]["test"]]]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert len(pins) > 100 and "torch" not in pins
    for requirement in wanted:
        if requirement.name != "torch":
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement
