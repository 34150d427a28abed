"""The default recipe on other texts, beside simple models and compression programs.

    pip install pyppmd && python benchmarks/texts.py FILE...

Each text is split as the pipeline splits it. All figures are bits per character of the validation part: a bigram model
counted on the training part; xz and PPMd as the growth of the compressed text when the validation part follows the
training part; and ours. PPMd has order 8 and 256 MB, and is left out if pyppmd is not installed.
"""

from __future__ import annotations

import json
import lzma
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ORDER, MEMORY = 8, 256 << 20


def bigram_bits(train: Any, val: Any, characters: int) -> float:
    """Of a bigram model with a little of the unigram model in it."""
    pairs = np.bincount(train[:-1].astype(np.int64) * characters + train[1:], minlength=characters**2)
    counts = pairs.reshape(characters, characters)
    single = (counts.sum(0) + 0.1) / (counts.sum() + 0.1 * characters)
    chances = (counts + 5 * single) / (counts.sum(1, keepdims=True) + 5)
    return float(-np.log2(chances[val[:-1], val[1:]]).mean())


def growth_bits(compress: Any, train: bytes, val: bytes, characters: int) -> float:
    """Bits that each of the validation part's characters adds to the compressed text."""
    return 8 * (len(compress(train + val)) - len(compress(train))) / characters


def main() -> None:
    from chargpt.evaluation.curve import Row
    from chargpt.project.params_file import load_params
    from chargpt.text.corpus import scan_text
    from chargpt.text.tokens import read_tokens, write_tokens
    from chargpt.training.events import Log
    from chargpt.training.loop import Trainer
    from chargpt.training.start import new_model

    compressors = {"xz": lambda text: lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)}
    try:
        import pyppmd

        compressors["PPMd"] = lambda text: pyppmd.compress(text, max_order=ORDER, mem_size=MEMORY)
    except ImportError:
        pass

    def report(event: object) -> None:
        if isinstance(event, Row):
            rows.append(event)
        elif isinstance(event, Log):
            print(f"  {event.text}", file=sys.stderr)

    rows: list[Row] = []
    params = load_params()
    for name in sys.argv[1:]:
        vocab, length = scan_text(name)
        with tempfile.TemporaryDirectory() as folder:
            tokens = Path(folder) / "tokens"
            write_tokens(tokens, name, vocab, length, params.val_fraction)
            train_ids, val_ids = read_tokens(tokens, vocab)
            parts = [vocab.decode(ids.tolist()).encode() for ids in (train_ids, val_ids)]
            found = {"bigram": bigram_bits(train_ids, val_ids, len(vocab))}
            for program, compress in compressors.items():
                found[program] = growth_bits(compress, *parts, len(val_ids))
            began = time.time()
            rows.clear()
            Trainer(new_model(params, len(vocab)), train_ids, val_ids, params, report=report).train()
            best = min(rows, key=lambda row: row.val_loss)
            found["chargpt"] = best.val_loss / math.log(2)
        figures = {key: round(value, 3) for key, value in found.items()}
        about = {"characters": length, "distinct": len(vocab), "updates": rows[-1].step, "best": best.step}
        losses = {"train_loss": round(rows[-1].train_loss, 3), "val_loss": round(rows[-1].val_loss, 3)}
        print(
            Path(name).name, json.dumps(about | figures | losses | {"seconds": round(time.time() - began)}), flush=True
        )


if __name__ == "__main__":
    main()
