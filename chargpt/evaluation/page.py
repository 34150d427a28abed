"""Write an HTML page about a model: metrics, a text coloured by surprise, a sample, memorised text, and curves.

The page is one file without scripts or links, so it opens anywhere. The same inputs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chargpt.evaluation.analysis import Analysis, analyse
from chargpt.evaluation.baselines import ngram_bits, verdict
from chargpt.evaluation.charts import charts
from chargpt.evaluation.curve import Row
from chargpt.evaluation.loss import metrics
from chargpt.evaluation.memorisation import PASSAGE, SAMPLING, memorisation
from chargpt.evaluation.surprise import LEVELS, TEMPLATE, cell, printable
from chargpt.inference.decoder import pack
from chargpt.inference.facade import LanguageModel
from chargpt.inference.sampling import Random, generate
from chargpt.model.file import ModelFile
from chargpt.model.gpt import GPT
from chargpt.templates import render
from chargpt.text.tokens import Ids
from chargpt.text.vocab import Vocab

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
    train_ids: Ids,
    val_ids: Ids,
    curve: Sequence[Row],
    previous: tuple[str, Mapping[str, float]] | None = None,
    init: object = "scratch",
) -> Report:
    """Evaluate a model on a whole split and write the page about it.

    train_ids, val_ids: (N,) unsigned, N >= 2. previous: name and metrics of another version to compare with, or None.
    init: what training started from.
    """
    analysis, packed = analyse(model, val_ids), pack(model)
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
    language = LanguageModel(ModelFile(model.config, vocab, model.arrays()))
    before, shown = vocab.decode(stretch[:1]), vocab.decode(stretch[1:])
    written = generate(packed, stretch[None], CONTINUATION, SAMPLING, Random(0))
    page = render(
        TEMPLATE,
        facts={"parameters": f"{model.config.parameters:,}"} | vars(model.config),
        metrics=[(name, value, previous[1].get(name) if previous else None) for name, value in sorted(figures.items())],
        previous=previous[0] if previous else None,
        verdict=worth,
        memorised=memorised,
        passage=printable(vocab.decode(generated.longest)),
        passage_length=PASSAGE,
        charts=charts(curve, analysis, vocab),
        stretch=[cell(prediction) for prediction in language.predictions(shown, before)],
        levels=range(LEVELS),
        sample=printable(vocab.decode(written[0, len(stretch) :])),
    )
    return Report(figures, memorised, worth, analysis, page)
