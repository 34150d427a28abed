"""The `chargpt` command. Heavy imports happen inside the commands, so that --help answers at once."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from typer.core import TyperGroup

from chargpt.errors import ChargptError, escape
from chargpt.model.config import DIALECTS
from chargpt.paths import MODEL
from chargpt.project.outputs import refuse_own, require_outputs
from chargpt.runtime.exits import import_undisturbed, one_line_errors, silence_stdout
from chargpt.runtime.machine import limit_threads

if TYPE_CHECKING:
    from chargpt.model.file import ModelFile


EXPORTS = (".html", ".gguf", ".onnx")  # what the name of an exported file may end in


class OneLineErrors(TyperGroup):
    """Command group that reports errors in one line."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().main(*arguments, **options)
        except SystemExit as ended:
            if isinstance(ended.__context__, BrokenPipeError):  # the reader of --help closed the pipe
                raise SystemExit(0) from None
            raise

    def invoke(self, ctx: Any) -> Any:
        with one_line_errors():
            try:
                result = super().invoke(ctx)
                if sys.stdout is not None:
                    sys.stdout.flush()
                return result
            except BrokenPipeError:  # the reader closed the pipe, as in `chargpt generate | head`
                silence_stdout()


app = typer.Typer(
    cls=OneLineErrors,
    help="A small character-level language model: generate text; migrate, export, check and release models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(importlib.metadata.version("chargpt"))
        raise typer.Exit


def _read(model: Path) -> ModelFile:
    """Read a model file. If the pipeline's own model does not exist yet, the error says how to make it."""
    from chargpt.model.file import read_model

    if model == Path(MODEL):
        require_outputs(MODEL)
    return read_model(model)


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def generate(
    prompt: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Text to continue; - reads the text from standard input.", show_default="a line break"),
    ] = None,
    prompt_file: Annotated[Optional[Path], typer.Option(help="File with the text to continue.")] = None,  # noqa: UP045
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=0, help="Number of characters to generate.")] = 500,
    num_samples: Annotated[int, typer.Option("--num-samples", min=1, help="Number of texts to generate.")] = 1,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest character; 1: as learned.")] = 0.8,
    top_k: Annotated[Optional[int], typer.Option(help="Sample from the k likeliest characters only.")] = None,  # noqa: UP045
    top_p: Annotated[Optional[float], typer.Option(help="Sample from the likeliest that add up to p.")] = None,  # noqa: UP045
    seed: Annotated[Optional[int], typer.Option(help="The same seed gives the same text.")] = None,  # noqa: UP045
    model: Annotated[Path, typer.Option(help="Model file.")] = Path(MODEL),
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    output: Annotated[Optional[Path], typer.Option(help="File to write instead, once the text is complete.")] = None,  # noqa: UP045
    exact: Annotated[bool, typer.Option("--exact", help="Always use the whole context; slow for long texts.")] = False,
) -> None:
    """Continue a prompt, and write the text to standard output while it is generated."""
    limit_threads()
    import_undisturbed("chargpt.inference.sampling")
    from chargpt.files import atomic_write
    from chargpt.inference.decoder import place
    from chargpt.inference.sampling import Random, stream

    refuse_own(output, model)
    text = _read_prompt(prompt, prompt_file)
    if seed is not None and not 0 <= seed < 2**63:
        raise ChargptError(f"--seed is {seed}; it must be at least 0 and below 2**63")
    file = _read(model)
    idx, source, random = [file.vocab.encode(text)], place(file, device), Random(seed)
    if sys.stdout is None and output is None:
        raise ChargptError("standard output is closed; pass --output")
    options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "exact": exact}
    with nullcontext(sys.stdout.buffer) if output is None else atomic_write(output) as target:
        for sample in range(num_samples):
            head = ("\n" if sample else "") + f"=== sample {sample + 1} ===\n" if num_samples > 1 else ""
            written = stream(source, idx, max_tokens, random=random, **options)
            target.write((head + text).encode())
            for chosen in written:
                target.write(file.vocab.decode(chosen.tolist()).encode())
                target.flush()
            target.write(b"\n")
        target.flush()


def _read_prompt(prompt: str | None, prompt_file: Path | None) -> str:
    """The text to continue: --prompt, a file or standard input; a line break if no option is given."""
    if prompt is not None and prompt_file is not None:
        raise ChargptError("--prompt and --prompt-file exclude one another; give one of them")
    if prompt_file is None and prompt != "-":
        return "\n" if prompt is None else prompt
    try:
        raw = prompt_file.read_bytes() if prompt_file is not None else sys.stdin.buffer.read()
        return raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except AttributeError:
        raise ChargptError("standard input is closed; pass the text with --prompt") from None
    except UnicodeDecodeError as error:
        where = f"{prompt_file or 'standard input'}: byte {error.start}"
        raise ChargptError(f"{where} is not UTF-8 text; save the prompt as UTF-8") from None


@app.command()
def migrate(
    weights_dir: Annotated[Path, typer.Option("--weights-dir", help="Directory of legacy <parameter>.txt files.")],
    corpus: Annotated[Optional[Path], typer.Option(help="The text that the model was trained on.")] = None,  # noqa: UP045
    output: Annotated[Path, typer.Option(help="Model file to write.")] = Path("model.safetensors"),
    config: Annotated[Optional[Path], typer.Option(help="The legacy config.json, if you have it.")] = None,  # noqa: UP045
    dialect: Annotated[str, typer.Option(help=f"auto, {', '.join(DIALECTS)}.")] = "auto",
    val_fraction: Annotated[float, typer.Option(help="Part of the text, at its end, to measure the loss on.")] = 0.1,
    params_out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="params.yaml to change so that training continues this model; created if missing."),
    ] = None,
) -> None:
    """Convert legacy text weights to a model file that computes the same function."""
    import_undisturbed("torch")
    import tempfile

    from chargpt.legacy import migration
    from chargpt.legacy.directory import read_legacy
    from chargpt.project import params_edit
    from chargpt.text.corpus import scan_text
    from chargpt.text.tokens import read_tokens, write_tokens

    if corpus is None:
        raise ChargptError(
            "legacy weights do not hold their vocabulary: pass --corpus with the text the model was trained on"
        )
    if dialect not in ("auto", *DIALECTS):
        raise ChargptError(f"--dialect is {dialect!r}; it must be one of auto, {', '.join(DIALECTS)}")
    if not 0 < val_fraction < 1:
        raise ChargptError(f"--val-fraction is {val_fraction}; it must be above 0 and below 1")
    for name, path in {"--corpus": corpus, "--config": config, "--params-out": params_out}.items():
        if path is not None and os.path.realpath(path) == os.path.realpath(output):
            raise ChargptError(f"--output {output} is the file of {name} and would replace it; give another path")
    refuse_own(output)
    loop = params_edit.legacy_settings(config) if config and params_out else {}
    if params_out and (params_out.exists() or params_out.is_symlink()):  # refuse a bad one before writing anything
        params_edit.load_editable(params_out)
    vocab, length = scan_text(corpus)
    legacy = read_legacy(weights_dir, config)
    legacy.require_vocab(vocab)
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.safetensors"
        write_tokens(tokens, corpus, vocab, length, val_fraction)
        train_ids, val_ids = read_tokens(tokens, vocab)
        found = migration.migrate(legacy, output, vocab, val_ids, train_ids=train_ids, dialect=dialect)
    print(found.report())
    if params_out is not None:
        sizes = params_edit.matching_params(_read(output).config, found.dialect)
        params_edit.write_params(params_out, sizes | loop)
        print(f"wrote {params_out}: its model and training keys are now those of the legacy model")
    print(f"wrote {output}; try: chargpt generate --model {output}")


@app.command()
def export(
    model: Annotated[Path, typer.Option(help="Model file.")] = Path(MODEL),
    output: Annotated[Path, typer.Option(help="Directory, or a file .html, .gguf or .onnx.")] = Path("hf"),
) -> None:
    """Write a model for others: a directory for transformers, .html for a browser, .gguf for llama.cpp, .onnx."""
    refuse_own(output, model)
    kind = output.suffix.lower()
    if not output.is_dir() and kind not in EXPORTS and re.fullmatch(r"\.[a-z]\w*|-", kind or output.name):
        raise ChargptError(
            f"--output {output}: no such format; choose a name that ends in {', '.join(EXPORTS)}, or a directory"
        )
    file = _read(model)
    if kind == ".onnx":
        from chargpt.export.onnx import save_onnx

        save_onnx(file, output)
        print(f"wrote {output}; docs/engines.md shows how ONNX Runtime runs it")
    elif kind == ".html":
        from chargpt.export.play import save_page

        save_page(file, output)
        print(f"wrote {output}; open it in a browser")
    elif kind == ".gguf":
        from chargpt.export.gguf import save_gguf

        modelfile = save_gguf(file, output)
        print(f"wrote {output}; try: llama-cli -m {output}, or: ollama create NAME -f {modelfile}")
    else:
        from chargpt.export import huggingface

        remark = huggingface.export(file, output, file.params)
        print(f"wrote {output}; load it with AutoModelForCausalLM.from_pretrained({str(output)!r})")
        if remark:
            print(f"note: {remark}", file=sys.stderr)


@app.command()
def inspect(model: Annotated[Path, typer.Argument(help="Model file.")] = Path(MODEL)) -> None:
    """Show a model file's architecture, vocabulary and training parameters."""
    file = _read(model)
    facts = {"file": f"{model}, {model.stat().st_size:,} bytes", "format version": file.format_version}
    facts |= {"parameters": f"{file.config.parameters:,}"} | asdict(file.config)
    facts |= {"characters": "".join(file.vocab.itos)}
    facts |= {f"trained with {name}": value for name, value in file.params.items()}
    for name, value in facts.items():
        print(f"{ascii(name)[1:-1]:<30} {value if name in ('file', 'parameters') else json.dumps(value)}")


@app.command()
def report(
    against: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Revision, tag or experiment to compare with.", show_default="newest version before this model"
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
) -> None:
    """Write a page about the pipeline's model, compared with another version of it."""
    limit_threads()
    import_undisturbed("torch")
    from chargpt.project.report import write_report

    refuse_own(output)
    previous = write_report(output, against, device)
    print(f"wrote {output}; " + (f"compared with {previous}" if previous else "no earlier version to compare with"))


@app.command()
def check() -> None:
    """Look for problems in the parameters, the environment and git, and say what to run next."""
    from chargpt.project.check import changed_stages, notes, problems

    found = list(problems())
    for problem in found:
        print(f"problem: {escape(problem, len(problem))}", file=sys.stderr)
    if found:
        raise ChargptError(f"{len(found)} to correct, then check again")
    changed = changed_stages()
    for note in notes():
        print(f"note: {note}")
    fetch = " --pull" if changed and not Path(MODEL).exists() and Path("dvc.lock").exists() else ""  # a fresh clone
    print("all in order; " + (f"next: dvc repro{fetch} (changed: {', '.join(changed)})" if changed else "up to date"))


@app.command()
def gate(
    against: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Revision or experiment to compare with.",
            show_default="HEAD, or the commit before it if no metric changed since HEAD",
        ),
    ] = None,
    max_regression: Annotated[float, typer.Option(min=0, help="Allowed rise, as a fraction of the old value.")] = 0.01,
) -> None:
    """Exit with status 1 if a metric is worse than at another revision; for continuous integration."""
    from chargpt.project.gate import compare

    revision, rows = compare(against, max_regression)
    for name, before, now, worse in rows:
        verdict = "  worse" if worse else ""
        print(f"{escape(name):<14} {revision} {before:.6f}  now {now:.6f}  {now - before:+.6f}{verdict}")
    names = [name for name, *_, worse in rows if worse]
    if names:
        raise ChargptError(
            f"worse than at {revision} by more than {max_regression:.2%}: {', '.join(names)};"
            " keep the old model, or allow more with --max-regression"
        )


@app.command()
def mlflow(
    tracking_uri: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Store to write to, a directory or a server.", show_default="$MLFLOW_TRACKING_URI"),
    ] = None,
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="MLflow's name for the experiments.", show_default="the project's folder"),
    ] = None,
) -> None:
    """Copy all commits and experiments, with their training curves, into an MLflow store; needs `mlflow-skinny`."""
    from chargpt.project.mlflow import mirror

    new, old = mirror(tracking_uri, name)
    print(f"new runs: {new}; already there: {old}")


@app.command()
def sweep(
    plan: Annotated[Path, typer.Argument(help="File that says what to vary, and where to run.")] = Path("sweep.yaml"),
    report: Annotated[Optional[Path], typer.Option(help="Write a page about the sweep, and run nothing.")] = None,  # noqa: UP045
) -> None:
    """Run a search for better parameters: each trial is a DVC experiment, on this machine or on a cluster."""
    from chargpt.sweep.submit import best, prepare, run

    refuse_own(report)
    begun = prepare(plan, new=report is None)
    if report is not None:
        from chargpt.sweep.page import write_page

        write_page(begun, report)
        print(f"wrote {escape(report)}")
        return
    run(begun, lambda line: print(escape(line, len(line)), flush=True))
    print(best(begun))


@app.command()
def trial(
    folder: Annotated[Path, typer.Argument(help="Directory of the sweep, as `chargpt sweep` shows it.")],
) -> None:
    """Run one trial of a sweep, or go on with an interrupted one, as any scheduler may call it."""
    from chargpt.sweep.study import open_sweep
    from chargpt.sweep.trial import run_trial

    print(escape(run_trial(open_sweep(folder)) or "nothing to do: the budget is spent"))


@app.command()
def release(
    version: Annotated[str, typer.Argument(help="Version, such as v1.2.0.")],
    name: Annotated[str, typer.Option(help="Name of an artifact that dvc.yaml declares.")] = "chargpt",
    message: Annotated[Optional[str], typer.Option("--message", "-m", help="Message of the tag.")] = None,  # noqa: UP045
) -> None:
    """Register the current commit as a version of the model, if it is complete and others can fetch the model."""
    from chargpt.project import release as releasing
    from chargpt.project.remotes import private_remote

    tag = releasing.release(version, name, message)
    if place := private_remote():
        print(f"note: the data is in {place}: only you, on this machine, can fetch it (docs/versions.md, A remote)")
    print(f"registered {tag}; next: git push origin {tag}")
