"""Write an HTML page about a model: metrics, a text coloured by surprise, a sample, and curves.

The page is one file without scripts or links, so it opens anywhere. The same inputs give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from chargpt.evaluation.analysis import Analysis, Prediction, analyse, predictions, visible
from chargpt.evaluation.charts import charts
from chargpt.evaluation.curve import Row
from chargpt.evaluation.loss import metrics
from chargpt.evaluation.memorisation import PASSAGE, recite
from chargpt.inference.decoder import pack
from chargpt.inference.sampling import Random, Sampling, generate
from chargpt.model.gpt import GPT
from chargpt.text.tokens import Ids
from chargpt.text.vocab import Vocab

LEVELS = 9  # of surprise; each is one bit wide, the last has no upper limit
STRETCH = 1200  # characters of the validation text that the page shows
CONTINUATION = 400  # characters that the model writes after that text


@dataclass(frozen=True)
class Report:
    """The results about a model: its metrics, what it recites, where its loss comes from, and the page as HTML."""

    figures: dict[str, float]
    copied: dict[str, float]
    analysis: Analysis
    page: str


def make_report(
    model: GPT,
    vocab: Vocab,
    train_ids: Ids,
    val_ids: Ids,
    curve: Sequence[Row],
    previous: tuple[str, Mapping[str, float]] | None = None,
) -> Report:
    """Evaluate a model on a whole split and write the page about it.

    train_ids, val_ids: (N,) unsigned, N >= 2. previous: name and metrics of another version to compare with, or None.
    """
    analysis = analyse(model, val_ids)
    figures = metrics(analysis.val_loss)
    packed = pack(model)
    model_copies, text_copies = recite(packed, train_ids, val_ids)
    copied = {
        "longest": len(model_copies.longest),
        "share": round(model_copies.share, 6),
        "validation_longest": len(text_copies.longest),
        "validation_share": round(text_copies.share, 6),
    }
    stretch = val_ids[: STRETCH + 1]
    written = generate(packed, stretch[None], CONTINUATION, Sampling(temperature=0.8), Random(0))
    page = render(
        facts={"parameters": f"{sum(p.numel() for p in model.parameters()):,}"} | vars(model.config),
        figures=figures,
        previous=previous,
        copied=copied | {"passage": vocab.decode(model_copies.longest)},
        charts=charts(curve, analysis, vocab),
        stretch=predictions(model, vocab, stretch),
        sample=vocab.decode(written[0, len(stretch) :]),
    )
    return Report(figures, copied, analysis, page)


def render(
    *,
    facts: Mapping[str, Any],
    figures: Mapping[str, float],
    previous: tuple[str, Mapping[str, float]] | None,
    copied: Mapping[str, Any],
    charts: Sequence[tuple[str, str]],
    stretch: Sequence[Prediction],
    sample: str,
) -> str:
    """The page as HTML.

    facts: values that describe the model, by name. figures: its metrics. previous: name and metrics of a version to
    compare with, or None. copied: what the model and the validation text share with the training text. charts: title
    and data URL of each. stretch: a text with what the model expected. sample: what the model wrote after this text.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    table = [(name, value, previous[1].get(name) if previous else None) for name, value in sorted(figures.items())]
    return environment.get_template("report.html.j2").render(
        facts=facts,
        metrics=table,
        previous=previous[0] if previous else None,
        copied={**copied, "passage": "".join(_printable(character) for character in copied["passage"])},
        passage_length=PASSAGE,
        charts=charts,
        stretch=[_cell(prediction) for prediction in stretch],
        levels=range(LEVELS),
        sample="".join(_printable(character) for character in sample),
    )


def _cell(prediction: Prediction) -> dict[str, Any]:
    """How the page shows a character of the coloured text: its form, level of surprise, and details on hover."""
    character, p = prediction.character, prediction.probability
    bits = -math.log2(max(p, 2**-40))
    lines = [f"{visible(character)}  {p:.1%}, {bits:.1f} bits", "", "expected:"]
    lines += [f"{'>' if other == character else ' '} {visible(other)}  {q:.1%}" for other, q in prediction.likeliest]
    shown = visible(character) if character == "\n" else _printable(character)
    return {"shown": shown, "level": min(LEVELS - 1, int(bits)), "about": "\n".join(lines), "ends": character == "\n"}


def _printable(character: str) -> str:
    """A character of running text; one that does not print, or reverses the text, is made visible."""
    return character if character == "\n" or character.isprintable() else visible(character)
