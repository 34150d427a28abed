"""Write an HTML page about a model: metrics, a text coloured by surprise, a sample, memorised text, and curves.

The page is one file without scripts or links, so it opens anywhere. The same inputs give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chargpt.evaluation.analysis import Analysis, Prediction, analyse, predictions, visible
from chargpt.evaluation.baselines import ngram_bits, verdict
from chargpt.evaluation.charts import charts
from chargpt.evaluation.curve import Row
from chargpt.evaluation.loss import metrics
from chargpt.evaluation.memorisation import PASSAGE, SAMPLING, memorisation
from chargpt.inference.decoder import pack
from chargpt.inference.sampling import Random, generate
from chargpt.model.gpt import GPT
from chargpt.templates import render
from chargpt.text.tokens import Split, characters_of
from chargpt.text.vocab import Vocab

LEVELS = 9  # of surprise; each is one bit wide, the last has no upper limit
STRETCH = 1200  # characters of the validation text that the page shows
CONTINUATION = 400  # characters that the model generates after that text


@dataclass(frozen=True)
class Report:
    """The results about a model: metrics, memorised text, verdict, where its loss comes from, and the page as HTML."""

    figures: dict[str, float]
    memorised: dict[str, float]
    verdict: str
    analysis: Analysis
    page: str


def make_report(
    model: GPT,
    vocab: Vocab,
    train_split: Split,
    val_split: Split,
    curve: Sequence[Row],
    previous: tuple[str, Mapping[str, float]] | None = None,
    init: object = "scratch",
) -> Report:
    """Evaluate a model on a whole split and write the page about it.

    train_split, val_split: N >= 2 characters. previous: name and metrics of another version to compare with, or None.
    init: what training started from.
    """
    analysis, packed = analyse(model, val_split), pack(model)
    train_ids, val_ids = characters_of(train_split), characters_of(val_split)
    figures = metrics(analysis.val_loss)
    figures["ngram_bits_per_char"] = round(ngram_bits(train_ids, val_ids, len(vocab)), 6)
    worth = verdict(figures["bits_per_char"], figures["ngram_bits_per_char"], init)
    generated, validation = memorisation(packed, train_ids, val_ids)
    memorised = {
        "longest": len(generated.longest),
        "share": round(generated.share, 6),
        "validation_longest": len(validation.longest),
        "validation_share": round(validation.share, 6),
    }
    stretch = val_ids[: STRETCH + 1]
    written = generate(packed, stretch[None], CONTINUATION, SAMPLING, Random(0))
    page = render(
        Path(__file__).with_name("report.html.j2"),
        facts={"parameters": f"{model.config.parameters:,}"} | vars(model.config),
        metrics=[(name, value, previous[1].get(name) if previous else None) for name, value in sorted(figures.items())],
        previous=previous[0] if previous else None,
        verdict=worth,
        memorised=memorised,
        passage=_printable(vocab.decode(generated.longest)),
        passage_length=PASSAGE,
        charts=charts(curve, analysis, vocab),
        stretch=[_cell(prediction) for prediction in predictions(model, vocab, stretch)],
        levels=range(LEVELS),
        sample=_printable(vocab.decode(written[0, len(stretch) :])),
    )
    return Report(figures, memorised, worth, analysis, page)


def _cell(prediction: Prediction) -> dict[str, Any]:
    """How the page shows a character of the coloured text: its form, level of surprise, and details on hover."""
    character, p = prediction.character, prediction.probability
    bits = -math.log2(max(p, 2**-40))
    lines = [f"{visible(character)}  {p:.1%}, {bits:.1f} bits", "", "expected:"]
    lines += [f"{'>' if other == character else ' '} {visible(other)}  {q:.1%}" for other, q in prediction.likeliest]
    shown = visible(character) if character == "\n" else _printable(character)
    return {"shown": shown, "level": min(LEVELS - 1, int(bits)), "about": "\n".join(lines), "ends": character == "\n"}


def _printable(text: str) -> str:
    """Running text in which characters that do not print, or reverse the text, are made visible."""
    return "".join(c if c == "\n" or c.isprintable() else visible(c) for c in text)
