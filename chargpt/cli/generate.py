"""`chargpt generate`: continue a prompt."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from chargpt.cli.models import read_model
from chargpt.errors import ChargptError
from chargpt.paths import MODEL
from chargpt.project.outputs import refuse_own
from chargpt.runtime.environment import limit_threads
from chargpt.runtime.exits import import_undisturbed


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
) -> None:
    """Continue a prompt, and write the text to standard output while it is generated."""
    limit_threads()
    import_undisturbed("chargpt.inference.sampling")
    from chargpt.files import atomic_write
    from chargpt.inference.decoder import place
    from chargpt.inference.facade import until
    from chargpt.inference.sampling import Random, Sampling, stream

    refuse_own(output, model)
    text = _read_prompt(prompt, prompt_file)
    file = read_model(model)
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
