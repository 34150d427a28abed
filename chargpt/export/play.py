"""Export a model as one web page in which it writes: without a server, a network or a program."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path

import numpy as np

from chargpt.errors import ChargptError
from chargpt.files import write_text
from chargpt.inference.sampling import KEPT_PART
from chargpt.model.file import ModelFile
from chargpt.templates import render

MAX_BYTES = 300_000_000  # of weights; browsers hold a text of about 500 million characters


def save_page(model: ModelFile, path: str | Path) -> None:
    """Write a page of HTML that holds the model (float32) and continues the text typed into it.

    The page computes what the model computes; like `generate`, it reads the last eighth of a full context again.
    Raises ChargptError if the weights are too large for a page.
    """
    sizes = {name: math.prod(shape) for name, shape in model.config.shapes().items()}
    if 4 * model.config.parameters > MAX_BYTES:
        raise ChargptError(f"{path}: not written: the weights exceed {MAX_BYTES / 1e6:g} MB; export to a directory")
    weights = np.concatenate([model.weights[name].ravel() for name in sizes]).astype("<f4").tobytes()
    kept = max(1, model.config.block_size // KEPT_PART)
    about = {"config": vars(model.config), "sizes": sizes, "vocab": model.vocab.itos, "kept": kept}
    folder = Path(__file__).parent
    page = render(
        folder / "play.html.j2",
        parameters=model.config.parameters,
        config=model.config,
        engine=(folder / "gpt.js").read_text(encoding="utf-8"),
        about=json.dumps(about).replace("<", r"\u003c"),  # no text can end the script
        weights=base64.b64encode(weights).decode(),
    )
    write_text(path, page)
