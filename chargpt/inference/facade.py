"""A model as one object, text in and text out: `chargpt.load`. Does not load torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from chargpt.errors import ChargptError
from chargpt.inference.decoder import IDS, PackedModel
from chargpt.inference.documents import write_documents
from chargpt.inference.kernel import new_cache, prepare
from chargpt.inference.sampling import Random, Sampling, generate_each, kept_characters
from chargpt.inference.scoring import losses, score_ids
from chargpt.model.file import ModelFile, read_model
from chargpt.text.documents import SEPARATORS

Text = TypeVar("Text", str, list[str])
DEFAULT = Sampling(temperature=0.8)


def load(path: str | Path) -> LanguageModel:
    """Load a model file, for the CPU. Raises ChargptError if the file is refused; the message says why."""
    return LanguageModel(read_model(path))


@dataclass(frozen=True)
class Scores:
    """How surprising N texts are, in their order.

    bits: (N,) float64, the sum over a text's characters. lengths: (N,) int64, characters. unknown: (N,) int64, how many
    of them the model does not know.
    """

    bits: NDArray[np.float64]
    lengths: NDArray[np.int64]
    unknown: NDArray[np.int64]
    _chars: list[NDArray[np.float64]]

    def chars(self, i: int) -> NDArray[np.float64]:
        """The bits of each character of text i, (lengths[i],) float64."""
        return self._chars[i]


class Prediction(NamedTuple):
    """A character of a text, and what the model expected in its place.

    bits: how surprising it is. rank: 1 for the likeliest character; None if the model does not know it.
    likeliest: the likeliest characters and their probabilities, likeliest first.
    """

    character: str
    bits: float
    rank: int | None
    likeliest: list[tuple[str, float]]


class LanguageModel:
    """A model and its vocabulary. Its methods take text as it is, for example with line ends of any kind."""

    def __init__(self, file: ModelFile) -> None:
        self.vocab, self.config = file.vocab, file.config
        self.separator = SEPARATORS.get(str(file.params.get("documents")))  # None: trained on one text
        self.model = PackedModel(file.config, prepare(file.config, file.weights))

    @cached_property
    def neutral(self) -> int:
        """The id that is read in the place of unknown characters: of the embedding that is nearest to their mean."""
        known = self.model.weights.wte
        return int(np.square(known - known.mean(axis=0)).sum(axis=1).argmin())

    def generate(
        self,
        prompt: Text,
        max_tokens: int = 500,
        *,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        exact: bool = False,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
    ) -> Text:
        """Prompts and their continuations by at most `max_tokens` characters: a text for a text, a list for a list.

        seed: the same one gives the same texts, those of `chargpt generate`; None for different ones each time.
        stop: texts before which a continuation ends; by default, the end of a document if there are documents. The
        other options are those of `Sampling`.
        Raises ChargptError if an option is out of its range, or for a prompt with a character that the model does not
        know.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        ids = [self.vocab.encode_array(self.vocab.closest(text)) for text in prompts]
        stops = [stop] if isinstance(stop, str) else list(stop or filter(None, [self.separator]))

        def enough(rows: IDS) -> bool:
            return bool(stops) and all(any(end in self.vocab.decode(row) for end in stops) for row in rows)

        sampling = Sampling(temperature, top_k, top_p, exact)
        written = generate_each(self.model, ids, max_tokens, sampling, Random(seed), enough)
        texts = [
            text + "".join(until(self.vocab.decode(row[len(start) :]), stops))
            for text, start, row in zip(prompts, ids, written, strict=True)
        ]
        return texts[0] if isinstance(prompt, str) else texts

    def documents(self, prompt: str = "", sampling: Sampling = DEFAULT, seed: int | None = None) -> Iterator[str]:
        """Documents without end, each with the prompt that it begins with, and without its separator.

        Raises ChargptError if the model was trained on one text, or if it does not know a character of the prompt.
        """
        if self.separator is None:
            raise ChargptError("this model was trained on one text; for documents, train with -S documents=lines")
        prompt = self.vocab.closest(prompt).lstrip("\n")
        start, end = (np.array(self.vocab.encode(text)) for text in ("\n" + prompt, self.separator))
        for ids in write_documents(self.model, start, end, sampling, Random(seed)):
            if text := (prompt + self.vocab.decode(ids)).strip("\n"):
                yield text

    def score(self, texts: str | Sequence[str], after: str = "\n") -> Scores:
        """How surprising each text is, if it begins after `after`. One text is a list of one.

        A character that the model does not know has `Vocab.unknown_bits`. Raises ChargptError for an empty `after`.
        """
        texts = [self.vocab.closest(text) for text in ([texts] if isinstance(texts, str) else texts)]
        lengths, start = np.array([len(text) for text in texts], np.int64), self._start(after)
        ids, unknown = self.vocab.encode_known("".join(texts), self.neutral)
        ends = np.cumsum(lengths)[:-1]
        pieces = losses(self.model, (np.concatenate([start, part]) for part in np.split(ids, ends)), len(start))
        bits = np.concatenate([np.empty(0), *(nats for nats, _ in pieces)]) / math.log(2)
        bits[unknown] = self.vocab.unknown_bits
        chars, strange = np.split(bits, ends)[: len(texts)], np.split(unknown, ends)[: len(texts)]
        sums, counts = np.array([text.sum() for text in chars]), np.array([text.sum() for text in strange], np.int64)
        return Scores(sums, lengths, counts, chars)

    def predictions(self, text: str, after: str = "\n", alternatives: int = 5) -> Iterator[Prediction]:
        """What the model expected in the place of each character of a text; its bits are those of `score`."""
        text, start = self.vocab.closest(text), self._start(after)
        ids, unknown = self.vocab.encode_known(text, self.neutral)
        pieces = losses(self.model, [np.concatenate([start, ids])], len(start), log_probs=True)
        rows = (pair for nats, log_probs in pieces for pair in zip(nats.tolist(), log_probs, strict=True))
        for character, i, strange, (nats, row) in zip(text, ids.tolist(), unknown.tolist(), rows, strict=True):
            rank = None if strange else int((row > row[i]).sum()) + 1
            top = np.argsort(-row, kind="stable")[:alternatives].tolist()
            likeliest = [(self.vocab.itos[j], math.exp(row[j])) for j in top]
            yield Prediction(character, self.vocab.unknown_bits if strange else nats / math.log(2), rank, likeliest)

    def start(self, text: str = "\n") -> State:
        """The state after reading a text, from which it can be continued. Raises ChargptError for an empty text."""
        state, _ = State(self), self._start(text)
        state.read(text)
        return state

    def _start(self, after: str) -> IDS:
        if not after:
            raise ChargptError("a text begins after something: give at least one character")
        return self.vocab.encode_known(self.vocab.closest(after), self.neutral)[0]


class State:
    """A model after a text: what it expects next. For searches that continue a text in several ways."""

    def __init__(self, owner: LanguageModel) -> None:
        self.owner, self._cache = owner, new_cache(owner.config, 1)
        self._context, self._log_probs = np.empty(0, np.int64), np.empty(0, np.float32)  # what the cache holds

    def probabilities(self) -> NDArray[np.float64]:
        """The probability of each character of the vocabulary to be the next one, (V,) float64."""
        return np.exp(self._log_probs.astype(np.float64))

    def read(self, text: str) -> float:
        """Read on, and return how surprising the text was, in bits. What `start` begins with costs nothing."""
        model, vocab, bits = self.owner.model, self.owner.vocab, 0.0
        for i, unknown in zip(*vocab.encode_known(vocab.closest(text), self.owner.neutral), strict=True):
            if len(self._log_probs):
                bits += vocab.unknown_bits if unknown else -float(self._log_probs[i]) / math.log(2)
            unread, start = np.array([i]), len(self._context)
            if start == model.config.block_size:
                unread, start = np.append(self._context, i)[-kept_characters(model.config) :], 0
            _, table = score_ids(model, self._cache, unread, unread, np.array([0, len(unread)]), start, True)
            self._context, self._log_probs = np.append(self._context[:start], unread), table[-1]
        return bits

    def copy(self) -> State:
        """Another state after the same text."""
        other = State(self.owner)
        other._cache.keys[:], other._cache.values[:] = self._cache
        other._context, other._log_probs = self._context, self._log_probs
        return other


def until(characters: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Pass characters on until one of the texts `stops` is complete, without it. What may be one is held back."""
    held = ""
    for character in characters:
        held += character
        ends = [held.find(stop) for stop in stops if stop in held]
        if ends:
            held = held[: min(ends)]
            break
        kept = max((n for stop in stops for n in range(len(stop)) if held.endswith(stop[:n])), default=0)
        yield held[: len(held) - kept]
        held = held[len(held) - kept :]
    yield held
