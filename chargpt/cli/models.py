"""`chargpt migrate`, `export` and `inspect`: model files, and what becomes of them."""

from __future__ import annotations

import json
import re
import shlex
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from chargpt.errors import ChargptError
from chargpt.model.config import DIALECTS
from chargpt.paths import MODEL
from chargpt.project.outputs import refuse_own, require_outputs
from chargpt.runtime.exits import import_undisturbed

if TYPE_CHECKING:
    from chargpt.inference.facade import LanguageModel
    from chargpt.model.file import ModelFile


def read_model(model: Path) -> ModelFile:
    """Read a model file. If the pipeline's own model does not exist yet, the error says how to make it."""
    from chargpt.model.file import read_model

    if model == Path(MODEL):
        require_outputs(MODEL)
    return read_model(model)


def load(model: Path) -> LanguageModel:
    """Like `read_model`, for scoring."""
    from chargpt.inference.facade import LanguageModel

    return LanguageModel(read_model(model))


def open_input(file: Path, remedy: str = "give the path of a file") -> AbstractContextManager[BinaryIO]:
    """A file to read, or standard input if its name is -; remedy: what to do if that is closed."""
    if str(file) != "-":
        return file.open("rb")
    if sys.stdin is None:
        raise ChargptError(f"standard input is closed; {remedy}")
    return nullcontext(sys.stdin.buffer)


def migrate(
    weights_dir: Annotated[Path, typer.Option(help="Directory of legacy <parameter>.txt files.")],
    corpus: Annotated[Path | None, typer.Option(help="The text that the model was trained on.")] = None,
    output: Annotated[Path, typer.Option(help="Model file to write.")] = Path("model.safetensors"),
    config: Annotated[Path | None, typer.Option(help="The legacy config.json, if you have it.")] = None,
    dialect: Annotated[str, typer.Option(help=f"auto, {', '.join(DIALECTS)}.")] = "auto",
    val_fraction: Annotated[float, typer.Option(help="Part of the text, at its end, to measure the loss on.")] = 0.1,
) -> None:
    """Convert legacy text weights to a model file that computes the same function."""
    import_undisturbed("torch")
    import tempfile

    from chargpt.legacy import migration
    from chargpt.legacy.directory import read_legacy
    from chargpt.params import check_value
    from chargpt.project.overrides import continue_training
    from chargpt.text.corpus import scan_text
    from chargpt.text.tokens import characters_of, read_tokens, write_tokens

    if corpus is None:
        raise ChargptError(
            "legacy weights do not hold their vocabulary: pass --corpus with the text the model was trained on"
        )
    check_value("dialect", dialect, "--dialect")
    check_value("val_fraction", val_fraction, "--val-fraction")
    refuse_own(output, corpus, config)
    vocab, length = scan_text(corpus)
    legacy = read_legacy(weights_dir, config)
    legacy.require_vocab(vocab)
    command = continue_training(legacy.sizes, dialect, weights_dir, corpus, config)
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.safetensors"
        write_tokens(tokens, corpus, vocab, length, val_fraction)
        train_ids, val_ids = map(characters_of, read_tokens(tokens, vocab))
        found = migration.migrate(legacy, output, vocab, val_ids, train_ids=train_ids, dialect=dialect)
    print(found.report())
    print(f"wrote {output}; to generate text, run: chargpt generate --model {shlex.quote(str(output))}")
    print(f"to continue the training in the pipeline, run: {command}")


def export(
    model: Annotated[Path, typer.Option(help="Model file.")] = Path(MODEL),
    output: Annotated[Path, typer.Option(help="Directory, or a file .html, .gguf or .onnx.")] = Path("hf"),
) -> None:
    """Write a model for others: a directory for transformers, .html for a browser, .gguf for llama.cpp, .onnx."""
    refuse_own(output, model)
    kind, modelfile = output.suffix.lower(), output.parent / f"{output.stem}.Modelfile"
    gguf, ollama = shlex.quote(str(output)), f"ollama create NAME -f {shlex.quote(str(modelfile))}"
    formats = {
        ".html": ("play.save_page", "open it in a browser"),
        ".gguf": ("gguf.save_gguf", f"run: llama-cli -m {gguf}, or: {ollama}"),
        ".onnx": ("onnx.save_onnx", "docs/engines.md shows how ONNX Runtime runs it"),
    }
    directory = ("huggingface.export", f"load it with AutoModelForCausalLM.from_pretrained({str(output)!r})")
    if not output.is_dir() and kind not in formats and re.fullmatch(r"\.[a-z]\w*", kind):
        names = ", ".join(formats)
        raise ChargptError(f"--output {output}: no such format; choose a name that ends in {names}, or a directory")
    writer, use = formats.get(kind, directory)
    module, save = writer.split(".")
    remark = getattr(import_module(f"chargpt.export.{module}"), save)(read_model(model), output)
    print(f"wrote {output}; {use}")
    if remark:
        print(f"note: {remark}", file=sys.stderr)


def inspect(model: Annotated[Path, typer.Argument(help="Model file.")] = Path(MODEL)) -> None:
    """Show a model file's architecture, vocabulary and training parameters."""
    file = read_model(model)
    facts = {"file": f"{model}, {model.stat().st_size:,} bytes", "format version": file.format_version}
    facts |= {"parameters": f"{file.config.parameters:,}"} | asdict(file.config)
    facts |= {"characters": "".join(file.vocab.itos)}
    facts |= {f"trained with {name}": value for name, value in file.params.items()}
    for name, value in facts.items():
        print(f"{ascii(name)[1:-1]:<30} {value if name in ('file', 'parameters') else json.dumps(value)}")
