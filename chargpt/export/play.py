"""Export a model as one web page in which it writes: without a server, a network or a program."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from chargpt.errors import ChargptError
from chargpt.files import write_text
from chargpt.model import GPT
from chargpt.sampling import KEPT_PART
from chargpt.vocab import Vocab

MAX_BYTES = 300_000_000  # of weights; browsers hold a text of about 500 million characters


def save_page(model: GPT, vocab: Vocab, path: str | Path) -> None:
    """Write a page of HTML that holds the model (float32), and continues what one types into it.

    The page computes what the model computes; like `generate`, it reads the last eighth of a full context again.
    Raises ChargptError if the weights are too large for a page, or if one is not finite.
    """
    tensors = {name: tensor.detach().cpu().float() for name, tensor in model.state_dict().items()}
    sizes = {name: tensor.numel() for name, tensor in tensors.items()}
    parameters = sum(sizes.values())
    if 4 * parameters > MAX_BYTES:
        raise ChargptError(
            f"{path}: not written: {4 * parameters:,} bytes of weights, and a page holds at most {MAX_BYTES:,};"
            " export to a directory"
        )
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ChargptError(f"{path}: not written: {name} holds nan or infinite values; export another model")
    weights = torch.cat([tensor.flatten() for tensor in tensors.values()]).numpy().astype("<f4").tobytes()
    about = {
        "config": vars(model.config),
        "sizes": sizes,
        "vocab": vocab.itos,
        "kept": max(1, model.config.block_size // KEPT_PART),
    }
    folder = Path(__file__).parent
    templates = Environment(
        loader=FileSystemLoader(folder), undefined=StrictUndefined, autoescape=True, keep_trailing_newline=True
    )
    page = templates.get_template("play.html.j2").render(
        parameters=parameters,
        config=model.config,
        engine=(folder / "gpt.js").read_text(encoding="utf-8"),
        about=json.dumps(about).replace("<", r"\u003c"),  # no text can end the script
        weights=base64.b64encode(weights).decode(),
    )
    write_text(path, page)
