"""`chargpt generate`: continue a prompt."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from chargpt.cli.models import open_input, read_model
from chargpt.errors import ChargptError
from chargpt.paths import MODEL
from chargpt.project.outputs import refuse_own
from chargpt.runtime.environment import limit_threads
from chargpt.runtime.exits import import_undisturbed

SHOWN = 20  # documents if their number is not given
TRIES = 10_000  # documents that are drawn in vain, before it is said that nothing new comes


def generate(
    prompt: Annotated[str | None, typer.Option(help="Text to continue; by default, a line break; -: stdin.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="File with the text to continue.")] = None,
    max_tokens: Annotated[int, typer.Option(min=0, help="Number of characters to generate.")] = 500,
    num_samples: Annotated[int, typer.Option(min=1, help="Number of texts to generate.")] = 1,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest character; 1: as learned.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Sample from the k likeliest characters only.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample from the likeliest that add up to p.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text before which to end; may be repeated.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="The same seed gives the same text.")] = None,
    model: Annotated[Path, typer.Option(help="Model file.")] = Path(MODEL),
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    output: Annotated[Path | None, typer.Option(help="File to write instead, once the text is complete.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Always use the whole context; slow for long texts.")] = False,
    documents: Annotated[int | None, typer.Option(min=1, help="Number of documents: lines or paragraphs.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Leave out documents of the corpus.")] = False,
    unique: Annotated[bool, typer.Option("--unique", help="Leave out documents that were written before.")] = False,
    corpus: Annotated[Path | None, typer.Option(help="Text for --new; by default, the project's.")] = None,
) -> None:
    """Continue a prompt, and write the text to standard output while it is generated."""
    limit_threads()
    import_undisturbed("chargpt.inference.sampling")
    from chargpt.files import atomic_write
    from chargpt.inference.decoder import place
    from chargpt.inference.facade import LanguageModel, until
    from chargpt.inference.sampling import Random, Sampling, stream
    from chargpt.text.documents import SEPARATORS

    refuse_own(output, model)
    if sys.stdout is None and output is None:
        raise ChargptError("standard output is closed; pass --output")
    text, file, random = _read_prompt(prompt, prompt_file), read_model(model), Random(seed)
    kind, sampling = str(file.params.get("documents")), Sampling(temperature, top_k, top_p, exact)
    if documents or (kind in SEPARATORS and num_samples == 1):
        language = LanguageModel(file)
        known = _known_documents(kind, corpus) if new and kind in SEPARATORS else set()
        drawn = language.documents(text, sampling, seed)
        chosen = _chosen(drawn, documents or SHOWN, known, unique)
        pieces: Iterator[str] = (f"{document}{language.separator}" for document in chosen)
    else:
        idx, source = [file.vocab.encode(file.vocab.closest(text))], place(file, device)
        written = [stream(source, idx, max_tokens, sampling, random) for _ in range(num_samples)]
        pieces = _headed(text, [until(map(file.vocab.decode, ids), stop or []) for ids in written])
    with nullcontext(sys.stdout.buffer) if output is None else atomic_write(output) as target:
        for piece in pieces:
            target.write(piece.encode())
            target.flush()


def _headed(text: str, samples: Sequence[Iterator[str]]) -> Iterator[str]:
    """Continuations of a text, with headings if there are several.

    The text comes with the first piece of its continuation: a note about compiling comes before that, and would
    otherwise follow it in a terminal.
    """
    for number, pieces in enumerate(samples, start=1):
        shown = ("\n" if number > 1 else "") + f"=== sample {number} ===\n{text}" if len(samples) > 1 else text
        for piece in pieces:
            yield shown + piece
            shown = ""
        yield "\n"


def _known_documents(kind: str, corpus: Path | None) -> set[str]:
    """The documents of a text, or of the project's corpus."""
    from chargpt.text.documents import read_documents

    if corpus is None:
        from chargpt.project.params_file import load_params

        corpus = Path(load_params().corpus)
    return {document.strip("\n") for document in read_documents(corpus, kind)}


def _chosen(drawn: Iterator[str], count: int, known: set[str], unique: bool) -> Iterator[str]:
    """Documents that are not known and, if asked for, not repeated. Tells how many were left out.

    Raises ChargptError if TRIES documents one after another are left out.
    """
    written: set[str] = set()
    left_out, repeated, vain = 0, 0, 0
    while count and vain < TRIES:
        document = next(drawn)
        left_out += document in known
        repeated += document in written
        if document in known or document in written:
            vain += 1
            continue
        if unique:
            written.add(document)
        count, vain = count - 1, 0
        yield document
    if known or unique:
        print(f"left out: {left_out} documents of the corpus, {repeated} repetitions", file=sys.stderr)
    if count:
        raise ChargptError(f"nothing new among the last {TRIES} documents; try a higher --temperature")


def _read_prompt(prompt: str | None, prompt_file: Path | None) -> str:
    """The text to continue: --prompt, a file or standard input; a line break if no option is given."""
    if prompt is not None and prompt_file is not None:
        raise ChargptError("--prompt and --prompt-file are mutually exclusive; use one of them")
    if prompt_file is None and prompt != "-":
        return "\n" if prompt is None else prompt
    with open_input(prompt_file or Path("-"), "pass the text with --prompt") as stream:
        raw = stream.read()
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        where = f"{prompt_file or 'standard input'}: byte {error.start}"
        raise ChargptError(f"{where} is not UTF-8 text; save the prompt as UTF-8") from None
