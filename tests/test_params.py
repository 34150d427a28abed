from __future__ import annotations

import json
import math
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import load_yaml

from chargpt.errors import ChargptError
from chargpt.params import Params, allowed, check_params, check_value, show_value
from chargpt.project.params_file import load_params
from tests.conftest import write_params
from tests.pipeline import ROOT


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("n_head", 3, ["n_embd=8 is not a multiple of n_head=3"]),
        ("top_p", 0, ["top_p is 0", "or null"]),
        ("launch", "torchrun", ["launch is 'torchrun'", "--nproc-per-node N"]),
        ("legacy_dir", "a\x1b[31m\nb", ["legacy_dir is 'a\\x1b[31m\\nb'; it must be a path, not empty, without"]),
    ],
)
def test_a_wrong_value_is_reported_in_one_line(tmp_path: Path, key: str, value: Any, words: list[str]) -> None:
    with pytest.raises(ChargptError) as error:
        load_params(write_params(tmp_path / "params.yaml", **{key: value}))
    message = str(error.value)
    assert "\n" not in message
    for word in [str(tmp_path / "params.yaml"), *words]:
        assert word in message


def test_a_missing_key_is_reported_with_its_range(tmp_path: Path) -> None:
    path = write_params(tmp_path / "params.yaml")
    path.write_text(re.sub(r"(?m)^lr:.*\n", "", path.read_text()))
    with pytest.raises(
        ChargptError, match=r"key lr is missing: add a line `lr: \.\.\.` \(a number, > 0, <= 10, or auto\)"
    ):
        load_params(path)


def test_a_repeated_key_is_reported_with_its_line(tmp_path: Path) -> None:
    path = write_params(tmp_path / "params.yaml")
    path.write_text(path.read_text() + "lr: 0.1\n")
    with pytest.raises(ChargptError, match=r'line \d+: not valid YAML: found duplicate key "lr" with value "0\.1"'):
        load_params(path)


@pytest.mark.parametrize(
    "text",
    [
        *["", "- 1\n", "lr: [\n", "lr: \t1: 2\n", "\x00", "a: &a [*a]\n", "[" * 5000, "lr: !!bool maybe\n"],
        *["seed: !!int ''\n", "? [a, [b]]\n: c\n", "a: &a [1, 1]\nlr: [*a, *a]\n", "seed: 0x" + "f" * 5000],
    ],
)
def test_invalid_yaml_is_one_short_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ChargptError, match=r"params\.yaml") as error:
        load_params(tmp_path / "params.yaml")
    assert len(error.value.args[0]) < 3000
    with pytest.raises(ChargptError, match="no such file"):
        load_params(tmp_path / "none.yaml")


def values(**changes: Any) -> dict[str, Any]:
    """The committed parameters, as a mapping, with changes."""
    return dict(load_params(ROOT / "params.yaml")) | changes


@pytest.mark.parametrize(
    ("key", "right", "wrong"),
    [
        ("val_fraction", [1e-9, 0.999], [0, 1, "0.5", True, math.nan, math.inf]),
        ("seed", [0, 2**32 - 1], [-1, 2**32, 1.0, True, [1]]),
        ("top_k", [1, 10**30, None], [0, "1"]),
        ("dialect", ["auto", "gelu-head", "gelu-embedding", "relu-head", "relu-embedding"], ["gelu", ""]),
        ("compile", [True, False], ["true", 1, None]),
        ("device", ["auto", "mps", "cuda", "cuda:0", "cuda:999"], ["cuda:00", "cuda:1000", "cpu:0", "CPU", "cpu\n"]),
        ("lr", [1e-12, 1, 10, "auto"], [0, 10.01, "Auto", None]),
        ("prompt", ["x", "\n"], ["", 1]),
        ("corpus", ["x", "a b/c", "é"], ["", "a\tb", "\x7f", "\u2028", "\x85", 1]),
    ],
)
def test_values_within_limits_are_accepted_and_others_refused(key: str, right: list[Any], wrong: list[Any]) -> None:
    """A key of each kind, as one value and in a whole file; docs/parameters.md has the limits of all keys."""
    for value in right:
        check_value(key, value, "here")
    for value in wrong:
        message = f"^here: {key} is {re.escape(repr(value))}; it must be {re.escape(allowed(key))}$"
        with pytest.raises(ChargptError, match=message):
            check_value(key, value, "here")
        with pytest.raises(ChargptError, match=message):
            check_params(values(**{key: value}), "here")


def test_warmup_is_at_most_the_whole_training() -> None:
    check_params(values(warmup_iters=50, max_iters=50))
    with pytest.raises(ChargptError, match=r"^params\.yaml: warmup_iters=51 must not exceed max_iters=50$"):
        check_params(values(warmup_iters=51, max_iters=50))


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("lrate", "unknown key lrate: did you mean lr?"),
        ("x" * 60, f"unknown key {'x' * 60}: the keys are corpus"),
        ("x" * 61, f"unknown key '{'x' * 27}...{'x' * 28}': the keys"),
        ("a b", "unknown key 'a b': the keys are"),
        ("a\nb", r"unknown key 'a\nb': the keys are"),
    ],
)
def test_unknown_keys_are_reported_with_the_nearest_name(key: str, shown: str) -> None:
    with pytest.raises(ChargptError) as error:
        check_params(values(**{key: 1}), "here")
    assert str(error.value).startswith(f"here: {shown}")


def test_values_are_shown_in_one_short_line() -> None:
    for value in ("x" * 58, 10**58, [[[1, "a\n"]]], True, None):
        assert show_value(value) == repr(value)
    for value in ("x" * 59, 10**60, Fraction(1, 10**60)):
        shown, whole = show_value(value), repr(value)
        start, end = shown.split("...")
        assert len(shown) == 60 and whole.startswith(start) and whole.endswith(end), shown
    assert show_value(10**5000) == "a number too long to show"
    assert show_value([[[[[[[[1]]]]]]]]) == "[[[[[[[...]]]]]]]"
    assert show_value(list(range(9))) == "[0, 1, 2, 3, 4, 5, ...]"


@pytest.mark.parametrize(
    "scalar",
    [
        *["1e-5", "1e-05", "1e5", "off", "yes", "on", "010", "0o10", "0x1F", "0b11", "1_000", "12:30", ".5", "5.", "~"],
        *["", "true", "True", "+3", "-0", "1.0", ".inf", "'1'", "2020-01-01", "null", "1e400"],
    ],
)
def test_values_are_read_as_dvc_reads_them(tmp_path: Path, scalar: str) -> None:
    path = write_params(tmp_path / "params.yaml")
    path.write_text(re.sub(r"(?m)^weight_decay:.*", f"weight_decay: {scalar}", path.read_text()))
    theirs = load_yaml(str(path))["weight_decay"]
    fits = type(theirs) in (int, float) and 0 <= theirs <= 10
    if fits:
        assert load_params(path).weight_decay == theirs
    else:
        with pytest.raises(ChargptError, match="weight_decay is ") as error:
            load_params(path)
        assert repr(theirs) in str(error.value)


def test_the_documented_table_is_the_schema_with_the_defaults() -> None:
    text = (ROOT / "docs/parameters.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in text.split("\n\n## ")[0].splitlines() if "| `" in row
    ]
    defaults = {key: json.dumps(value) if not isinstance(value, str) else value for key, value in values().items()}
    assert [(key, words, default) for key, words, _, default, _ in rows] == [
        (f"`{key}`", allowed(key), "`" + defaults[key].replace("\n", "\\n") + "`") for key in Params.model_fields
    ]


@pytest.mark.parametrize(
    "launch", re.findall(r"torchrun --[\w -]*\d", (ROOT / "docs/scaling.md").read_text(encoding="utf-8"))
)
def test_documented_launch_commands_are_accepted(tmp_path: Path, launch: str) -> None:
    assert load_params(write_params(tmp_path / "params.yaml", launch=launch)).launch == launch


@pytest.mark.parametrize(
    "launch",
    [
        *["sh -c 'touch x'", "python -c 1", "python; touch x", "python\n", "torchrun data/mine.txt"],
        *["torchrun --standalone; touch x", "torchrun --standalone data/mine.txt", "torchrun --no-python touch x"],
        *["torchrun --standalone --no-python", "torchrun --nnodes --no-python", "torchrun --nnodes 1 -m os"],
        *["torchrun --standalone --log-dir /", "torchrun --nproc-per-node 2 --master-addr 192.0.2.1"],
        *["torchrun --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint 192.0.2.1:29400"],
        *[f"torchrun --nproc-per-node {number}" for number in ("$(id)", "0", "100")],
    ],
)
def test_launch_cannot_name_other_programs_or_machines(tmp_path: Path, launch: str) -> None:
    with pytest.raises(ChargptError, match=r"launch is .*; it must be python, or torchrun --standalone --nproc"):
        load_params(write_params(tmp_path / "params.yaml", launch=launch))


@pytest.mark.parametrize("text", ["echo ${n_layer}", "${oc.env:HOME}", "???"])
def test_texts_that_dvc_would_replace_are_refused(text: str) -> None:
    """In `dvc exp run -S`, OmegaConf does (treeverse/dvc#11018)."""
    with pytest.raises(ChargptError, match=r"params.yaml: prompt is '.*'; `dvc exp run` would replace"):
        check_params(values(prompt=text))
