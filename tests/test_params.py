from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import load_yaml

from chargpt.app.params_file import load_params
from chargpt.errors import ChargptError
from chargpt.params import Params, allowed
from tests.conftest import write_params
from tests.pipeline import ROOT


def test_committed_file_is_valid() -> None:
    load_params(ROOT / "params.yaml")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("n_head", 3, ["n_embd=8", "n_head=3", "-S n_head=2"]),
        ("dropout", 2, ["dropout is 2", ">= 0, < 1"]),
        ("lr", "abc", ["lr is 'abc' (text)", "a number, > 0, <= 10"]),
        ("lr", True, ["lr is True (a boolean)", "a number"]),
        ("lr", None, ["lr is None (empty)"]),
        ("lr", float("nan"), ["lr is nan"]),
        ("max_iters", 12.5, ["max_iters is 12.5", "a whole number"]),
        ("seed", -1, ["seed is -1", ">= 0"]),
        ("init", "scrath", ["init is 'scrath'", "scratch, migrated"]),
        ("device", "gpu", ["device is 'gpu'", "cuda:N"]),
        ("top_p", 0, ["top_p is 0", "or null"]),
        ("launch", "torchrun", ["launch is 'torchrun'", "--nproc-per-node N"]),
        ("corpus", "", ["corpus is ''"]),
        ("corpus", "a\nerror: b", ["corpus is 'a\\nerror: b'", "without control characters"]),
        ("legacy_dir", "a\x1b[31m", ["legacy_dir is 'a\\x1b[31m'", "without control characters"]),
        ("corpus", ["a"], ["corpus is ['a']"]),
        ("warmup_iters", 11, ["warmup_iters=11", "max_iters=10"]),
        ("prompt", "x" * 10_000_0, ["larger than"]),
    ],
)
def test_one_clear_line(tmp_path: Path, key: str, value: Any, words: list[str]) -> None:
    with pytest.raises(ChargptError) as error:
        load_params(write_params(tmp_path / "params.yaml", **{key: value}))
    message = str(error.value)
    assert "\n" not in message
    for word in [str(tmp_path / "params.yaml"), *words]:
        assert word in message


def test_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ChargptError, match=r"unknown key batchsize: did you mean batch_size\?"):
        load_params(write_params(tmp_path / "params.yaml", batchsize=3))


def test_missing_key(tmp_path: Path) -> None:
    path = write_params(tmp_path / "params.yaml")
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith("lr:")))
    with pytest.raises(ChargptError, match=r"key lr is missing: add a line `lr: \.\.\.` \(a number, > 0, <= 10\)"):
        load_params(path)


def test_duplicate_key(tmp_path: Path) -> None:
    path = write_params(tmp_path / "params.yaml")
    path.write_text(path.read_text() + "lr: 0.1\n")
    with pytest.raises(ChargptError, match=r'line \d+: found duplicate key "lr": it is there twice'):
        load_params(path)


@pytest.mark.parametrize(
    "text",
    [
        *["", "- 1\n", "lr: [\n", "lr: \t1: 2\n", "\x00", "a: &a [*a]\n", "[" * 5000, "lr: !!bool maybe\n"],
        *[
            "seed: !!int ''\n",
            "? [a, [b]]\n: c\n",
            "a: &a [1, 1, 1, 1, 1, 1, 1, 1]\nlr: [*a, *a]\n",
            "seed: 0x" + "f" * 5000,
        ],
    ],
)
def test_no_yaml_mapping(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ChargptError, match=r"params\.yaml") as error:
        load_params(tmp_path / "params.yaml")
    assert len(error.value.args[0]) < 3000


def test_several_problems_one_line_each(tmp_path: Path) -> None:
    with pytest.raises(ChargptError) as error:
        load_params(write_params(tmp_path / "params.yaml", lr="x", dropout=7, oops=1))
    assert len(str(error.value).splitlines()) == 3


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ChargptError, match="no such file"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    "scalar",
    [
        *[
            "1e-5",
            "1e-05",
            "1e5",
            "off",
            "yes",
            "on",
            "010",
            "0o10",
            "0x1F",
            "0b11",
            "1_000",
            "12:30",
            ".5",
            "5.",
            "~",
            "",
        ],
        *["true", "True", "+3", "-0", "1.0", ".inf", "'1'", "2020-01-01", "null", "1e400"],
    ],
)
def test_values_read_as_dvc_reads_them(tmp_path: Path, scalar: str) -> None:
    path = write_params(tmp_path / "params.yaml")
    lines = [
        f"weight_decay: {scalar}\n" if x.startswith("weight_decay:") else x for x in path.read_text().splitlines(True)
    ]
    path.write_text("".join(lines))
    theirs = load_yaml(str(path))["weight_decay"]
    fits = type(theirs) in (int, float) and 0 <= theirs <= 10
    if fits:
        assert load_params(path).weight_decay == theirs
    else:
        with pytest.raises(ChargptError, match="weight_decay is ") as error:
            load_params(path)
        assert repr(theirs) in str(error.value)


def test_yaml_1_2_in_words(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = write_params(path).read_text()
    path.write_text(text.replace("seed: 1337", "seed: 010"))
    assert load_params(path).seed == 10
    path.write_text("".join("lr: 1e-05\n" if x.startswith("lr:") else x for x in text.splitlines(True)))
    assert load_params(path).lr == 1e-5


def test_the_table_lists_every_parameter_with_its_range() -> None:
    readme = (ROOT / "docs/parameters.md").read_text(encoding="utf-8")
    for key in Params.model_fields:
        assert f"| `{key}` | {allowed(key)} |" in readme, f"| `{key}` | {allowed(key)} |"


@pytest.mark.parametrize(
    "launch", re.findall(r"torchrun --[\w -]*\d", (ROOT / "docs/scaling.md").read_text(encoding="utf-8"))
)
def test_what_the_documents_launch(tmp_path: Path, launch: str) -> None:
    assert load_params(write_params(tmp_path / "params.yaml", launch=launch)).launch == launch


@pytest.mark.parametrize(
    "launch",
    [
        "sh -c 'touch x'",
        "python -c 1",
        "python; touch x",
        "torchrun --standalone; touch x",
        "torchrun data/mine.txt",
        "torchrun --standalone data/mine.txt",
        "torchrun --no-python touch x",
        "torchrun --standalone --no-python",
        "torchrun --nnodes --no-python",
        "torchrun --nnodes 1 -m os",
        "torchrun --standalone --log-dir /",
        "torchrun --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint 192.0.2.1:29400",
        "torchrun --nproc-per-node 2 --master-addr 192.0.2.1",
        "torchrun --nproc-per-node $(id)",
        "torchrun --nproc-per-node 0",
        "torchrun --nproc-per-node 100",
        "python\n",
    ],
)
def test_launch_runs_no_other_program(tmp_path: Path, launch: str) -> None:
    with pytest.raises(ChargptError, match=r"launch is .*; it must be python, or torchrun --standalone --nproc"):
        load_params(write_params(tmp_path / "params.yaml", launch=launch))
