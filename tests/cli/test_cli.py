from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chargpt.model.file import load_model, save_model
from chargpt.model.gpt import GPT
from chargpt.text.vocab import Vocab
from tests.conftest import chargpt
from tests.pipeline import ROOT

COMMAND = [sys.executable, "-m", "chargpt"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture
def folder(tmp_path: Path, model: GPT, vocab: Vocab) -> Path:
    save_model(tmp_path / "artifacts/model.safetensors", model, vocab, {"lr": 0.1})
    return tmp_path


def test_generate(folder: Path) -> None:
    """From and to standard streams and files."""
    options = ["--max-tokens", "40", "--seed", "1"]
    first = chargpt("generate", "--prompt", "abc", *options, cwd=folder)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.startswith("abc")
    assert len(first.stdout) == 3 + 40 + 1
    assert chargpt("generate", "--prompt", "-", *options, cwd=folder, input="abc").stdout == first.stdout
    (folder / "prompt.txt").write_text("abc", encoding="utf-8")
    written = chargpt("generate", "--prompt-file", "prompt.txt", "--output", "new/text.txt", *options, cwd=folder)
    assert (written.returncode, written.stdout) == (0, ""), written.stderr
    assert (folder / "new/text.txt").read_text(encoding="utf-8") == first.stdout
    (folder / "prompt.txt").write_bytes(b"\xef\xbb\xbfab\r\nc")
    windows = chargpt("generate", "--prompt-file", "prompt.txt", *options, cwd=folder)
    assert windows.stdout.startswith("ab\nc"), windows.stderr
    several = chargpt("generate", *options, "--num-samples", "2", "--top-k", "2", "--top-p", "0.9", cwd=folder)
    assert several.stdout.count("=== sample") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "xyz"], "error: character 'x' (at position 0) is not in the vocabulary of 14 characters;"),
        (["--prompt", ""], "error: generation needs a prompt of at least one character"),
        (
            ["--prompt", "a", "--prompt-file", "a"],
            "error: --prompt and --prompt-file are mutually exclusive; use",
        ),
        (["--prompt-file", "absent.txt"], "error: absent.txt: No such file or directory"),
        (["--prompt-file", "bad.txt"], "error: bad.txt: byte 0 is not UTF-8 text; save the prompt as UTF-8"),
        (["--model", "none.safetensors"], "error: none.safetensors: no such file"),
        (["--temperature", "-1"], "error: temperature is -1.0; it must be"),
        (["--device", "cuda:99"], "error: device cuda:99 is not available here"),
        (["--device", "toaster"], "error: device is 'toaster'"),
    ],
)
def test_generate_reports_errors_in_one_line(folder: Path, arguments: list[str], message: str) -> None:
    (folder / "bad.txt").write_bytes(b"\xff")
    done = chargpt("generate", *arguments, cwd=folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(message), done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["generate", "score", "inspect", "export"])
def test_a_missing_model_is_reported_with_the_command_that_makes_it(tmp_path: Path, command: str) -> None:
    wrong = "error: artifacts/model.safetensors: no such file"
    done = chargpt(command, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{wrong} here; run from the project's root, or give a path\n"
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    done = chargpt(command, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{wrong}; to fetch or make it, run: dvc repro --pull\n"
    assert [path.name for path in tmp_path.iterdir()] == ["dvc.yaml"]


SMALL = """
import sys
import chargpt.__main__, chargpt.cli.app

class Absent:  # what only the pipeline needs
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in "torch dvc gto onnx gguf matplotlib ruamel yaml tqdm psutil filelock".split():
            raise ModuleNotFoundError(name=name)

sys.meta_path.insert(0, Absent())
for command in ("generate --max-tokens 9", "score x", "inspect", "export --output hf", "export --output x.html",
    "report --text x", "migrate --weights-dir w --corpus x"):
    sys.argv[1:] = command.split()
    try:
        chargpt.__main__.main()
    except SystemExit as ended:
        if ended.code:
            print(ended.code)
"""


def test_using_a_model_needs_no_torch_and_no_dvc(folder: Path) -> None:
    """Other commands say what to install."""
    (folder / "x").write_text("abc\n")
    done = subprocess.run([sys.executable, "-c", SMALL], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *others, last = done.stdout.splitlines()
    assert last == "error: torch is not installed; run: pip install 'chargpt[pipeline]'"
    assert [line for line in others if line.startswith("error")] == []


@pytest.mark.system
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_interrupt_and_closed_pipe_end_cleanly(folder: Path) -> None:
    for how, status in (("interrupt", 130), ("close", 0)):
        process = subprocess.Popen(
            [*COMMAND, "generate", "--max-tokens", "1000000"],
            cwd=folder,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # a test run that was started in the background ignores Ctrl-C, and its children would too
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert process.stdout and process.stderr
        process.stdout.read(10)
        if how == "interrupt":
            process.send_signal(signal.SIGINT)
        process.stdout.close()
        assert process.wait(timeout=60) == status
        assert b"Traceback" not in process.stderr.read()
        process.stderr.close()


@pytest.mark.parametrize("command", ["--help", "generate --help", "--version"])
def test_help_into_a_closed_pipe_ends_quietly(command: str, folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [*COMMAND, *command.split()], cwd=folder, env=ENVIRONMENT, stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert process.stderr == b""


def test_help_answers_without_torch(folder: Path) -> None:
    done = chargpt("--help", cwd=folder)
    for command in ("generate", "migrate", "export", "inspect"):
        assert command in done.stdout
    check = "import sys, chargpt.cli.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0


@pytest.mark.system
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux's full disk")
def test_a_full_disk_is_reported_in_one_line(folder: Path) -> None:
    for arguments in (["--help"], ["generate", "--help"], ["generate", "--max-tokens", "5"], ["inspect"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [*COMMAND, *arguments], cwd=folder, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True
            )
        said = "error: output: no disk space left; free some space and run the same command again\n"
        assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.system
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_termination_leaves_no_partial_file(folder: Path) -> None:
    command = [*COMMAND, "generate", "--max-tokens", "100000000", "--output", "text.txt"]
    process = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(folder.glob(".chargpt-*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.terminate()
    assert (process.communicate(timeout=60)[1], process.returncode) == (b"terminated\n", 143)
    assert [path.name for path in folder.iterdir() if path.name != ".ses"] == ["artifacts"]


@pytest.mark.system
@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_a_file_name_that_is_not_utf_8(folder: Path) -> None:
    environment = ENVIRONMENT | {"PYTHONIOENCODING": "utf-8:strict"}
    command = [*COMMAND, "export", "--output", os.fsdecode(b"\xff.onnx")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(rb"wrote \udcff.onnx;")


def test_inspect(folder: Path) -> None:
    done = chargpt("inspect", cwd=folder)
    assert done.returncode == 0
    for words in (
        "n_embd ",
        'activation                     "gelu"',
        "parameters",
        "trained with lr                0.1",
    ):
        assert words in done.stdout


def test_check_outside_a_clone_is_one_error(tmp_path: Path) -> None:
    done = chargpt("check", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: dvc.yaml: no such file; run from the root of a clone of chargpt\n"


@pytest.mark.parametrize("name", ["model.onnx", "play.html", "MODEL.GGUF", "hf"])
def test_export(folder: Path, name: str) -> None:
    done = chargpt("export", "--output", name, cwd=folder)
    file = folder / ("hf/model.safetensors" if name == "hf" else name)
    assert (done.returncode, file.stat().st_size > 1000) == (0, True), done.stderr
    assert name != "MODEL.GGUF" or "num_ctx" in (folder / "MODEL.Modelfile").read_text()
    assert chargpt("export", "--output", "artifacts", cwd=folder).returncode == 1  # a directory of another kind


@pytest.mark.parametrize("name", ["play.htm", "new.safetensors"])
def test_export_refuses_unknown_formats(folder: Path, name: str) -> None:
    done = chargpt("export", "--output", name, cwd=folder)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"--output {name}: no such format; choose a name that ends in .html, .gguf, .onnx, or a" in done.stderr
    assert not (folder / name).exists()


def test_outputs_over_inputs_and_pipeline_files_are_refused(folder: Path) -> None:
    (folder / "notes").write_text("mine")
    assert (
        "notes: is neither an earlier export nor an empty directory"
        in chargpt("export", "--output", "notes", cwd=folder).stderr
    )
    done = chargpt("generate", "--output", "artifacts/model.safetensors", cwd=folder)
    assert (done.returncode, "is an input of this command and would replace it" in done.stderr) == (1, True)
    shutil.copyfile(ROOT / "dvc.yaml", folder / "dvc.yaml")
    for name in ("artifacts/hf", "stages", "metrics"):
        (folder / name).mkdir(exist_ok=True)
    for name in ("stages/train.py", "metrics/evaluate.json", "artifacts/sample.txt"):
        (folder / name).write_text("mine")
        done = chargpt("generate", "--output", f"../{folder.name}/{name}", cwd=folder)
        assert (done.returncode, f"is the project's {name} and would replace it" in done.stderr) == (1, True)
    done = chargpt("export", "--output", "artifacts/hf", cwd=folder)
    assert (done.returncode, "is the project's artifacts/hf and would replace it" in done.stderr) == (1, True)


def test_migrate(tmp_path: Path) -> None:
    """On a text that the committed weights were not trained on: refused; with the dialect named: converted."""
    text = "".join(chr(c) for c in range(65, 65 + 65)) * 20
    (tmp_path / "corpus.txt").write_text(text, encoding="utf-8")
    weights = ["--weights-dir", str(ROOT / "data/legacy/weights"), "--config", str(ROOT / "data/legacy/config.json")]
    refused = chargpt("migrate", *weights, cwd=tmp_path)
    assert "error: legacy weights do not hold their vocabulary: pass --corpus" in refused.stderr
    refused = chargpt("migrate", *weights, "--corpus", "corpus.txt", cwd=tmp_path)
    assert (refused.returncode, "no dialect is better than" in refused.stderr) == (1, True)
    for output in ("corpus.txt", str(ROOT / "data/legacy/config.json")):
        refused = chargpt("migrate", *weights, "--corpus", "corpus.txt", "--output", output, cwd=tmp_path)
        assert (refused.returncode, "and would replace it; give another path" in refused.stderr) == (1, True)
    refused = chargpt("migrate", *weights, "--corpus", "corpus.txt", "--dialect", "relu", cwd=tmp_path)
    assert (refused.returncode, "must be one of auto, gelu-head" in refused.stderr) == (1, True)
    assert [p.name for p in tmp_path.iterdir()] == ["corpus.txt"]
    done = chargpt("migrate", *weights, "--corpus", "corpus.txt", "--dialect", "relu-embedding", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "largest error 0.0; dialect relu-embedding" in done.stdout
    assert done.stdout.splitlines()[-1] == (
        f"to continue the training in the pipeline, run: dvc exp run -S init=migrated -S legacy_dir={ROOT}/data/legacy"
        " -S corpus=corpus.txt -S dialect=relu-embedding -S block_size=32 -S n_layer=2 -S n_head=3 -S n_embd=24"
        " -S dropout=0.0 -S batch_size=32 -S max_iters=20000 -S eval_interval=1000 -S lr=0.002"
        " -S optimizer=adamw -S warmup_iters=0 -S final_lr_fraction=1.0 -S weight_decay=0.01 -S beta1=0.9"
        " -S beta2=0.999 -S grad_clip=0.0"
    )
    model, vocab = load_model(tmp_path / "model.safetensors")
    assert (len(vocab), model.config.attention_scale) == (65, "embedding")
