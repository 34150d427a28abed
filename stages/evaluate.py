"""The trained model's exact loss on the validation split, where it comes from, and a page about it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from stages import run

if TYPE_CHECKING:
    from chargpt.params import Params

STRETCH = 1200  # characters of the validation text that the page shows
CONTINUATION = 400  # characters that the model writes after it


def main(params: Params) -> None:
    import torch

    from chargpt.analysis import analyse, predictions
    from chargpt.checkpoint import load_model
    from chargpt.data import read_tokens
    from chargpt.device import pick_device
    from chargpt.evaluation import metrics
    from chargpt.files import write_json, write_rows, write_text
    from chargpt.git import previous_version
    from chargpt.report import read_curve, render
    from chargpt.sampling import generate

    model, vocab = load_model("artifacts/model.safetensors", pick_device(params.device))
    _, val_ids = read_tokens("data/tokens.safetensors", vocab)
    analysis = analyse(model, val_ids)
    figures = metrics(analysis.val_loss)
    positions, hardest = analysis.positions(), analysis.hardest(vocab)
    stretch = torch.from_numpy(val_ids[: STRETCH + 1].astype("int64"))
    written = generate(model, stretch[None], CONTINUATION, temperature=0.8, generator=torch.Generator().manual_seed(0))
    page = render(
        facts={"parameters": f"{sum(p.numel() for p in model.parameters()):,}"} | vars(model.config),
        figures=figures,
        previous=previous_version(figures),
        curve=read_curve("metrics/curves.tsv"),
        positions=positions,
        hardest=hardest,
        stretch=predictions(model, vocab, val_ids[: STRETCH + 1]),
        sample=vocab.decode(written[0, len(stretch) :]),
    )
    write_rows("metrics/positions.tsv", ("characters_seen", "loss"), positions)
    write_rows("metrics/characters.tsv", ("character", "count", "loss"), hardest)
    write_text("metrics/report.html", page)
    write_json("metrics/evaluate.json", figures)
    print("evaluate: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()), file=sys.stderr)


if __name__ == "__main__":
    run(main)
