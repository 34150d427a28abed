from __future__ import annotations

import sys
from pathlib import Path

import pytest

from chargpt.cli.generate import generate
from chargpt.errors import ChargptError
from chargpt.model.config import GPTConfig
from chargpt.model.file import save_model
from chargpt.text.vocab import Vocab
from tests.conftest import chargpt, random_model

MODEL = ["generate", "--model", "m.safetensors", "--seed", "1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a model of lines of the letters a and b."""
    model = random_model(GPTConfig(3, 8, 1, 1, 4))
    save_model(tmp_path / "m.safetensors", model, Vocab("\nab"), {"documents": "lines"})
    return tmp_path


def test_documents_are_lines(folder: Path) -> None:
    written = chargpt(*MODEL, "--documents", "7", "--prompt", "ab", cwd=folder)
    assert written.returncode == 0 and len(written.stdout.splitlines()) == 7
    assert all(line.startswith("ab") for line in written.stdout.splitlines())
    assert len(chargpt(*MODEL, cwd=folder).stdout.splitlines()) == 20


def test_documents_may_be_new_and_unique(folder: Path) -> None:
    """Those of the corpus and those that were written are left out, which is told; nothing new is an error."""
    drawn = chargpt(*MODEL, "--documents", "300", cwd=folder).stdout.splitlines()
    (folder / "list").write_text("\n".join(drawn[:100]))
    new = chargpt(*MODEL, "--documents", "50", "--new", "--unique", "--corpus", "list", cwd=folder)
    lines = new.stdout.splitlines()
    expected = list(dict.fromkeys(line for line in drawn if line not in drawn[:100]))
    assert lines[:10] == expected[:10] and len(set(lines)) == 50
    assert new.stderr.startswith("left out: ") and new.stderr.endswith(" repetitions\n")


def test_a_model_of_one_text_has_no_documents(folder: Path) -> None:
    save_model(folder / "m.safetensors", random_model(GPTConfig(3, 8, 1, 1, 4)), Vocab("\nab"), {})
    done = chargpt(*MODEL, "--documents", "7", "--new", "--corpus", "m.safetensors", cwd=folder)
    assert done.returncode == 1
    assert done.stderr == "error: this model was trained on one text; for documents, train with -S documents=lines\n"


@pytest.mark.parametrize("documents", [None, 5])
def test_a_closed_output_is_an_error(folder: Path, documents: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(ChargptError, match="standard output is closed; pass --output"):
        generate(model=folder / "m.safetensors", documents=documents)
