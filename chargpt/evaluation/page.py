"""Write an HTML page about a model: metrics, a text coloured by surprise, a sample, memorised text, and curves.

The page is one file without scripts or links, so it opens anywhere. The same inputs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np

from chargpt.device import pick_device
from chargpt.evaluation.analysis import Analysis, analyse
from chargpt.evaluation.baselines import ngram_bits, verdict
from chargpt.evaluation.charts import charts
from chargpt.evaluation.curve import Row
from chargpt.evaluation.loss import metrics
from chargpt.evaluation.memorisation import PASSAGE, SAMPLING, known_documents, memorisation
from chargpt.evaluation.surprise import LEVELS, TEMPLATE, cell, printable
from chargpt.inference.decoder import pack
from chargpt.inference.facade import LanguageModel
from chargpt.inference.sampling import Random, generate
from chargpt.model.file import ModelFile
from chargpt.model.gpt import GPT
from chargpt.templates import render
from chargpt.text.documents import Documents
from chargpt.text.tokens import Split, characters_of
from chargpt.text.vocab import Vocab

STRETCH = 1200  # characters of the validation text that the page shows
CONTINUATION = 400  # characters that the model generates after that text
DOCUMENTS, LISTED = 1000, 30  # documents that the model writes, and how many of them the page lists


@dataclass(frozen=True)
class Report:
    """The results about a model: metrics, memorised text, verdict, where its loss comes from, and the page as HTML."""

    figures: dict[str, float]
    memorised: dict[str, float]
    verdict: str
    analysis: Analysis
    page: str


def make_report(
    file: ModelFile,
    train_split: Split,
    val_split: Split,
    curve: Sequence[Row],
    previous: tuple[str, Mapping[str, float]] | None = None,
    device: str = "cpu",
) -> Report:
    """Evaluate a model on a whole split and write the page about it.

    train_split, val_split: N >= 2 characters. previous: name and metrics of another version to compare with, or None.
    device: of the model, as in params.yaml.
    """
    vocab, language = file.vocab, LanguageModel(file)
    model = GPT.from_arrays(file.config, file.weights).to(pick_device(device)).eval()
    analysis, packed = analyse(model, val_split), pack(model)
    train_ids, val_ids = characters_of(train_split), characters_of(val_split)
    figures = metrics(analysis.val_loss)
    figures["ngram_bits_per_char"] = round(ngram_bits(train_ids, val_ids, len(vocab)), 6)
    worth = verdict(figures["bits_per_char"], figures["ngram_bits_per_char"], file.params.get("init"))
    documents, written, sample, memorised = [], None, "", {}
    if isinstance(train_split, Documents):
        texts = list(islice(language.documents(seed=0), DOCUMENTS))
        encoded = [vocab.encode_array(f"{text}{language.separator}") for text in texts]
        known, written = known_documents(encoded, train_split), np.concatenate(encoded)
        memorised = {"new": round(1 - float(known.mean()), 6), "unique": round(len(set(texts)) / DOCUMENTS, 6)}
        documents = [(printable(text), bool(old)) for text, old in zip(texts[:LISTED], known, strict=False)]
    else:
        continued = generate(packed, val_ids[None, : STRETCH + 1], CONTINUATION, SAMPLING, Random(0))
        sample = vocab.decode(continued[0, STRETCH + 1 :])
    generated, validation = memorisation(packed, train_ids, val_ids, written)
    memorised |= {
        "longest": len(generated.longest),
        "share": round(generated.share, 6),
        "validation_longest": len(validation.longest),
        "validation_share": round(validation.share, 6),
    }
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
        stretch=[cell(p) for text in stretch(val_split, vocab) for p in language.predictions(*text)],
        levels=range(LEVELS),
        sample=printable(sample),
        documents=documents,
    )
    return Report(figures, memorised, worth, analysis, page)


def stretch(split: Split, vocab: Vocab) -> Iterator[tuple[str, str]]:
    """The beginning of a split in pieces that the model reads alone, each with what it begins after."""
    ids = characters_of(split)
    if not isinstance(split, Documents):
        yield vocab.decode(ids[1 : STRETCH + 1]), vocab.decode(ids[:1])
        return
    for start, end in pairwise([1, *split.ends[split.ends <= STRETCH].tolist()]):
        yield vocab.decode(ids[start:end]), "\n"
