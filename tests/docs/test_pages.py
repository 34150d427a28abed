"""The documents speak of what exists: parameters, commands, options, files, links."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import tomllib

import pytest
import typer.main
from dvc.utils.hydra import to_hydra_overrides
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from chargpt.cli.app import app
from chargpt.params import Params, check_value
from tests.docs.pages import PAGES, blocks
from tests.pipeline import ROOT

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def prose(text: str) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as hosts of git repositories make them."""
    headings = re.findall(r"^#+ (.*)", prose(PAGES[page]), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_links_to_every_page() -> None:
    assert set(re.findall(r"\]\(([\w/.-]+\.md)", PAGES["README.md"])) == PAGES.keys() - {"README.md"}
    assert "](docs/report.png)" in PAGES["README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_parameters_after_S_exist(page: str) -> None:
    assert set(re.findall(r"-S ['\"]?(\w+)=", PAGES[page])) - {"key", "name"} <= set(Params.model_fields)


@pytest.mark.filterwarnings("ignore")  # of Hydra's parser
@pytest.mark.parametrize("page", PAGES)
def test_S_sets_what_the_page_shows(page: str) -> None:
    """As a shell splits the line, and as DVC parses the words; every page that sets text quotes it for both."""
    shown = re.findall(r"-S ('[^']*'|\w+=\"[^\"]*\"|\w+=[^\s`]+)", PAGES[page])
    for word in (shlex.split(text)[0] for text in shown):
        key, _, text = word.partition("=")
        if key in Params.model_fields and not re.fullmatch("[A-Z]+", text):  # of placeholders
            (override,) = to_hydra_overrides([word])
            values = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
            parts = [text[1:-1]] if text[0] == '"' else text.split(",")
            for value, part in zip(values, parts, strict=True):
                assert value == (part if isinstance(value, str) else YAML(typ="safe").load(part)), word
                check_value(key, value, page)


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_exist(page: str) -> None:
    code = "\n".join([*blocks(page), *re.findall(r"`([^`\n]+)`", prose(PAGES[page]))])
    for command, rest in re.findall(r"^chargpt (\w+)(.*)", code, re.MULTILINE):
        options = {option for p in COMMANDS[command].params for option in p.opts}
        assert set(re.findall(r"(--[\w-]+)", rest)) <= options, (command, rest)


def test_every_command_is_documented() -> None:
    for command in COMMANDS:
        assert any(f"chargpt {command}" in text for page, text in PAGES.items() if page != "CHANGELOG.md"), command


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page: str) -> None:
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", prose(PAGES[page])):
        path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.relative_to(ROOT).as_posix()), (target, anchor)


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_parse(page: str) -> None:
    for block in blocks(page):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
    for block in blocks(page, language="python"):
        ast.parse(block)


def test_every_dependency_is_pinned_within_its_range() -> None:
    """constraints.txt is what the tests ran with; torch is pinned in pyproject.toml itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(line) for line in [*project["dependencies"], *extras["pipeline"], *extras["test"][1:]]]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert len(pins) > 100 and "torch" not in pins
    for requirement in wanted:
        if requirement.name != "torch":
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement
