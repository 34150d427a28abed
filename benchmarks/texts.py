"""How well a model learns a text with the recipe that the text decides, beside what counting and compressing reach.

    pip install pyppmd && python benchmarks/texts.py FILE... [--init auto scratch base] [--seeds 3] [-S KEY=VALUE]...

A text is prepared, and a model trained, by the stages' own code with the values of params.yaml. Figures are bits per
character of the validation part: the best static n-gram counted on the training part; xz and PPMd as the growth of the
compressed text when the validation part follows the training part (PPMd has order 8 and 256 MB, and is left out if
pyppmd is not installed); and the model's, one for each seed, with the seconds of training and its evaluations.
"""

from __future__ import annotations

import argparse
import lzma
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from chargpt.evaluation.baselines import ngram_bits
from chargpt.evaluation.curve import Row
from chargpt.model.file import ModelFile, read_model, save_model
from chargpt.params import Params
from chargpt.project.params_file import load_params
from chargpt.text.corpus import scan_text
from chargpt.text.documents import Documents, write_documents
from chargpt.text.tokens import Split, read_tokens, write_tokens
from chargpt.text.vocab import Vocab
from chargpt.training.loop import Trainer
from chargpt.training.schedule import resolve
from chargpt.training.start import continued_model, new_model, surprise

BASE = Path("base/model.safetensors")
ORDER, MEMORY = 8, 256 << 20


def split(file: Path, params: Params) -> tuple[Vocab, Split, Split]:
    """The vocabulary and both parts of a text, as `prepare` makes them."""
    vocab, length = scan_text(file)
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens"
        if params.documents == "whole":
            write_tokens(tokens, file, vocab, length, params.val_fraction)
        else:
            write_documents(tokens, file, vocab, params.documents, params.val_fraction)
        return vocab, *read_tokens(tokens, vocab)


def fit(params: Params, vocab: Vocab, train: Split, val: Split) -> tuple[ModelFile, Params, list[Row], float]:
    """A model as `train` makes it, the parameters that the text decided, the curve, and the seconds."""
    source = None if params.init == "scratch" else read_model(BASE)
    bits = surprise(source, params, vocab, train) if source else 0.0
    params = resolve(params, len(train), bits, source.config if source else None)
    rows: list[Row] = []
    began = time.perf_counter()
    start = new_model(params, len(vocab)) if params.init == "scratch" else continued_model(source, params, vocab)
    model = Trainer(
        start, train, val, params, report=lambda event: rows.append(event) if isinstance(event, Row) else None
    ).train()
    seconds = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        save_model(path := Path(folder) / "model.safetensors", model, vocab, params.model_dump())
        return read_model(path), params, rows, seconds


def counted(vocab: Vocab, train: Split, val: Split) -> dict[str, float]:
    """What an n-gram and compression programs reach, in bits per character."""
    found = {"n-gram": ngram_bits(ids_of(train), ids_of(val), len(vocab))}
    parts = [vocab.decode(ids_of(ids).tolist()).encode() for ids in (train, val)]

    def growth(compress: Callable[[bytes], bytes]) -> float:
        return 8 * (len(compress(b"".join(parts))) - len(compress(parts[0]))) / len(ids_of(val))

    found["xz"] = growth(lambda text: lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    try:
        import pyppmd
    except ImportError:
        return found
    return found | {"PPMd": growth(lambda text: pyppmd.compress(text, max_order=ORDER, mem_size=MEMORY))}


def ids_of(part: Split) -> Any:
    """The ids of a part of a text or of documents, (N,) unsigned."""
    return part.ids if isinstance(part, Documents) else np.asarray(part)


def changes(lines: list[str]) -> dict[str, Any]:
    """The values of KEY=VALUE."""
    import yaml

    return {key: yaml.safe_load(value) for key, _, value in (line.partition("=") for line in lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--init", nargs="+", default=["auto"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-S", action="append", default=[], dest="set", metavar="KEY=VALUE")
    options = parser.parse_args()
    params = load_params().model_copy(update=changes(options.set))
    for file in options.files:
        parts = split(file, params)
        figures = ", ".join(f"{name} {bits:.3f}" for name, bits in counted(*parts).items())
        print(
            f"{file.stem}: {len(parts[1]) + len(parts[2]):,} characters, {len(parts[0])} distinct; {figures}",
            flush=True,
        )
        for init in options.init:
            for seed in range(1337, 1337 + options.seeds):
                _, chosen, rows, seconds = fit(params.model_copy(update={"init": init, "seed": seed}), *parts)
                best = min(rows, key=lambda row: row.val_loss)
                print(
                    f"  init {init} ({chosen.init}), seed {seed}: {best.val_loss / math.log(2):.3f} in {seconds:.0f} s;"
                    f" at first {rows[0].val_loss / math.log(2):.3f}, best step {best.step} of {chosen.max_iters}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
