"""`chargpt generate`: continue a prompt."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chargpt.cli.models import read_model
from chargpt.errors import ChargptError
from chargpt.paths import MODEL
from chargpt.project.outputs import refuse_own
from chargpt.runtime.environment import limit_threads
from chargpt.runtime.exits import import_undisturbed

if TYPE_CHECKING:
    from chargpt.inference.facade import LanguageModel

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
    text = _read_prompt(prompt, prompt_file)
    file = read_model(model)
    if documents or (file.params.get("documents") in SEPARATORS and num_samples == 1):
        language, sampling = LanguageModel(file), Sampling(temperature, top_k, top_p)
        known = _known_documents(language, corpus) if new else set()
        drawn = language.documents(text, sampling, seed)
        with nullcontext(sys.stdout.buffer) if output is None else atomic_write(output) as target:
            for document in _chosen(drawn, documents or SHOWN, known, unique):
                target.write(f"{document}{language.separator}".encode())
                target.flush()
        return
    idx, source, random = [file.vocab.encode(file.vocab.closest(text))], place(file, device), Random(seed)
    if sys.stdout is None and output is None:
        raise ChargptError("standard output is closed; pass --output")
    sampling = Sampling(temperature, top_k, top_p, exact)
    with nullcontext(sys.stdout.buffer) if output is None else atomic_write(output) as target:
        for sample in range(num_samples):
            head = ("\n" if sample else "") + f"=== sample {sample + 1} ===\n" if num_samples > 1 else ""
            written = stream(source, idx, max_tokens, sampling, random)
            shown = head + text  # not yet: a note about compiling comes first, and would follow it in a terminal
            for piece in until(map(file.vocab.decode, written), stop or []):
                target.write((shown + piece).encode())
                target.flush()
                shown = ""
            target.write(f"{shown}\n".encode())
        target.flush()


def _known_documents(language: LanguageModel, corpus: Path | None) -> set[str]:
    """The documents of a text, or of the project's corpus."""
    from chargpt.text.documents import SEPARATORS, read_documents

    if corpus is None:
        from chargpt.project.params_file import load_params

        corpus = Path(load_params().corpus)
    kind = next(kind for kind, separator in SEPARATORS.items() if separator == language.separator)
    return {document.strip("\n") for document in read_documents(corpus, kind)}


def _chosen(drawn: Iterator[str], count: int, known: set[str], unique: bool) -> Iterator[str]:
    """Documents that are not known and, if asked for, not repeated. Tells how many were left out.

    Raises ChargptError if TRIES documents one after another are left out.
    """
    written: set[str] = set()
    left_out, repeated, vain = 0, 0, 0
    while count and vain < TRIES:
        document = next(drawn)
        vain += 1
        if document in known:
            left_out += 1
        elif unique and document in written:
            repeated += 1
        else:
            written.add(document) if unique else None
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
    try:
        raw = prompt_file.read_bytes() if prompt_file is not None else sys.stdin.buffer.read()
        return raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except AttributeError:
        raise ChargptError("standard input is closed; pass the text with --prompt") from None
    except UnicodeDecodeError as error:
        where = f"{prompt_file or 'standard input'}: byte {error.start}"
        raise ChargptError(f"{where} is not UTF-8 text; save the prompt as UTF-8") from None
