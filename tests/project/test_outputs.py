"""No command replaces a file of the pipeline."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chargpt.errors import ChargptError
from chargpt.project.outputs import refuse_own

ANCHORS = "x: &code [chargpt/text]\nstages:\n  a:\n    deps: *code\n    outs: [out.bin, {m.json: {cache: false}}]\n"


def test_outputs_over_files_of_the_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large dvc.yaml with anchors, too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text(ANCHORS + "  b:\n    deps: ['${corpus}']\n# " + "x" * 100_000)
    (tmp_path / "params.yaml").write_text("corpus: mine.txt\n")
    (tmp_path / "chargpt/text").mkdir(parents=True)
    for name in ("out.bin", "m.json", "mine.txt", "chargpt/text/vocab.py", "other"):
        (tmp_path / name).touch()
    for name in ("out.bin", "m.json", "mine.txt", "chargpt/text/vocab.py", "dvc.yaml", "params.yaml"):
        with pytest.raises(ChargptError, match=r"is the project's .* and would replace it; give another path"):
            refuse_own(Path(name))
    refuse_own(Path("other"))
    refuse_own(Path("new"))
    refuse_own(None)


@pytest.mark.parametrize(
    ("name", "text"), [("dvc.yaml", "stages: ["), ("dvc.yaml", "stages: [a]"), ("params.yaml", "lr: [")]
)
def test_outputs_beside_a_damaged_pipeline(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be read could name the output."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    (tmp_path / name).write_text(text)
    with pytest.raises(ChargptError, match=f"^{name}: .*run: git checkout {name}$"):
        refuse_own(Path("new"))


def test_links_and_streams_are_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out.txt").touch()
    Path("link.txt").symlink_to("out.txt")
    Path("folder").mkdir()
    Path("link").symlink_to("folder")
    with pytest.raises(ChargptError, match=f"link.txt is a symbolic link; .* use --output {tmp_path}/out.txt$"):
        refuse_own(Path("link.txt"))
    refuse_own(Path("link"))
    os.mkfifo("pipe")
    for name in ("-", "/dev/stdout", "/dev/null", "pipe"):
        with pytest.raises(ChargptError, match=f"--output {name} is not a file; leave --output out"):
            refuse_own(Path(name))
