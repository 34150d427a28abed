"""The documents speak of what exists: parameters, commands, options, files."""

from __future__ import annotations

import re

import pytest
import typer.main

from chargpt.cli import app
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
        for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
            assert (ROOT / target).exists(), target
