"""Generate text, character by character."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chargpt.errors import ChargptError
from chargpt.inference.decoder import IDS, Choice, Model, make_decoder, pack
from chargpt.model.config import GPTConfig

# Characters times parameters of one call of the decoder: milliseconds while the text is shown. After a call, threads
# wait for one another.
SHOWN, WHOLE = 50_000_000, 200_000_000
KEPT_PART = 8  # the last 1/8 of a full context is kept: it predicts as well as all of it, and leaves 7/8 free
NOT_FINITE = "the model's predictions are not finite: training diverged; use another model"


@dataclass(frozen=True)
class Sampling:
    """How the next character is chosen. Raises ChargptError if a value is out of its range.

    temperature: >= 0; divides the logits, and 0 takes the likeliest character.
    top_k: >= 1 or None; samples from the k likeliest characters only.
    top_p: in (0, 1] or None; samples from the fewest likeliest characters whose probabilities add up to p.
    exact: what happens when the context is full. Position embeddings are learned, so a full context cannot slide on by
    one character: it must be read again from position 0. If `exact` is true, the last block_size characters are read
    again for each further character, which costs ten times as much. If it is false, the last eighth of the context is
    read again each time that the context is full. A prediction then sees between an eighth of block_size characters
    and all of them, with no measurable loss of quality.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        t, k, p = self.temperature, self.top_k, self.top_p
        if not isinstance(t, Real) or not 0 <= t < math.inf:
            raise ChargptError(f"temperature is {t!r}; it must be a finite number of at least 0 (0 is greedy)")
        if k is not None and (not isinstance(k, Integral) or k < 1):
            raise ChargptError(f"top_k is {k!r}; it must be a whole number of at least 1")
        if p is not None and (not isinstance(p, Real) or not 0 < p <= 1):
            raise ChargptError(f"top_p is {p!r}; it must be a number above 0 and at most 1")

    def choice(self, vocab_size: int) -> Choice:
        """The values as `kernel.draw` takes them, where None is the value that restricts nothing."""
        top_k = vocab_size if self.top_k is None else min(int(self.top_k), vocab_size)
        return float(self.temperature), top_k, 1.0 if self.top_p is None else float(self.top_p)


AS_LEARNED = Sampling()


class Random:
    """Uniform random numbers: exactly those of torch's generator on a CPU with the same seed, without loading torch.

    seed: from 0 to 2**32 - 1, which are the seeds of that generator; None for a different one each time. Raises
    ChargptError for others.
    """

    def __init__(self, seed: int | None = None) -> None:
        if seed is not None and (not isinstance(seed, Integral) or not 0 <= seed < 2**32):
            raise ChargptError(f"seed is {seed!r}; it must be a whole number from 0 to 4294967295, or None")
        self._state = np.random.RandomState(None if seed is None else int(seed))

    def integers(self, count: int) -> NDArray[np.uint64]:
        """(count,) uint64, all values equally likely."""
        words = self._state.randint(0, 1 << 32, size=(count, 2), dtype=np.uint32).astype(np.uint64)
        return words[:, 0] << np.uint64(32) | words[:, 1]

    def numbers(self, count: int) -> NDArray[np.float64]:
        """(count,) float64 in [0, 1)."""
        return (self.integers(count) & np.uint64((1 << 53) - 1)).astype(np.float64) * 2.0**-53

    def split(self, count: int) -> list[Random]:
        """Generators for the rows of a batch: the text of a row then does not depend on the number of rows."""
        return [Random(int(seed) % (2**63 - 1) % 2**32) for seed in self.integers(count)]


def generate(
    model: Model, idx: ArrayLike, max_tokens: int, sampling: Sampling = AS_LEARNED, random: Random | None = None
) -> IDS:
    """Continue each row of idx (B, T), whole numbers, by `max_tokens` characters; return (B, T + max_tokens) int64.

    model: a model file as `read_model` returns it, a `GPT` on any device, or for many calls the result of `pack`.
    random: the random numbers, None for different ones each time. The same state of `random` gives the same text.
    Raises ChargptError for an empty prompt or an argument out of its range.
    """
    ids = _check_arguments(model.config, idx, max_tokens)
    rows = (random or Random()).split(len(ids))
    return np.concatenate([ids, *_pieces(model, ids, max_tokens, sampling, rows, WHOLE)], axis=1)


def stream(
    model: Model, idx: ArrayLike, max_tokens: int, sampling: Sampling = AS_LEARNED, random: Random | None = None
) -> Iterator[IDS]:
    """An iterator that yields the next id of each row, (B,) int64, `max_tokens` times.

    The arguments are those of `generate`. They are checked at the call, before the first id is asked for.
    """
    ids = _check_arguments(model.config, idx, max_tokens)
    rows = (random or Random()).split(len(ids))
    return (chosen for piece in _pieces(model, ids, max_tokens, sampling, rows, SHOWN) for chosen in piece.T)


def generate_each(
    model: Model,
    prompts: Sequence[ArrayLike],
    max_tokens: int,
    sampling: Sampling = AS_LEARNED,
    random: Random | None = None,
    enough: Callable[[IDS], bool] = lambda _: False,
) -> list[IDS]:
    """Continue prompts of different lengths, each (T,) whole numbers, by `max_tokens` characters.

    enough: given the new ids (B, n) of prompts of one length, may end their texts before `max_tokens`.
    The other arguments are those of `generate`. Returns one array (T + max_tokens,) int64 for each prompt, in their
    order. Prompts of the same length are generated together. The text of a prompt does not depend on the other prompts,
    but on its place in the list, which decides its random numbers.
    """
    given = [_check_arguments(model.config, np.asarray(prompt)[None], max_tokens)[0] for prompt in prompts]
    rows, model, texts = (random or Random()).split(len(given)), pack(model), list(given)
    for length in {len(ids) for ids in given}:
        places = [i for i, ids in enumerate(given) if len(ids) == length]
        written = np.stack([given[i] for i in places])
        for piece in _pieces(model, written, max_tokens, sampling, [rows[i] for i in places], WHOLE):
            written = np.concatenate([written, piece], axis=1)
            if enough(written[:, length:]):
                break
        for i, text in zip(places, written, strict=True):
            texts[i] = text
    return texts


def _pieces(
    model: Model, idx: IDS, max_tokens: int, sampling: Sampling, rows: list[Random], work: int
) -> Iterator[IDS]:
    """Yield the next ids of each row in pieces, (B, n) int64. work: characters times parameters of a piece."""
    block_size, choice = model.config.block_size, sampling.choice(model.config.vocab_size)
    # number of characters that are read again when the context is full
    kept = block_size if sampling.exact else kept_characters(model.config)
    decoder, piece = make_decoder(model, len(idx)), max(1, work // model.config.parameters)
    start, recent = 0, idx[:, -block_size:]
    unread = recent
    while max_tokens:
        if start + unread.shape[1] > block_size:
            start, unread = 0, recent[:, -kept:]
        count = min(max_tokens, piece, block_size + 1 - start - unread.shape[1])
        uniform = np.stack([row.numbers(count) for row in rows], axis=1)
        chosen = decoder.extend(unread, start, uniform, choice).T
        if chosen.min() < 0:
            raise ChargptError(NOT_FINITE)
        yield chosen
        start += unread.shape[1] + count - 1
        unread = chosen[:, -1:]
        recent = np.concatenate([recent, chosen], axis=1)[:, -block_size:]
        max_tokens -= count


def kept_characters(config: GPTConfig) -> int:
    """How many characters are read again when the context is full."""
    return max(1, config.block_size // KEPT_PART)


def _check_arguments(config: GPTConfig, idx: ArrayLike, max_tokens: int) -> IDS:
    """The ids as (B, T) int64."""
    if not isinstance(max_tokens, Integral) or max_tokens < 0:
        raise ChargptError(f"max_tokens is {max_tokens!r}; it must be a whole number of at least 0")
    try:
        ids = np.asarray(idx)
    except ValueError:  # rows of different lengths
        raise ChargptError("prompts of different lengths: use generate_each") from None
    if ids.ndim != 2:
        raise ChargptError(f"ids have shape {ids.shape}; expected (B, T), a row of ids for each text: use Vocab.encode")
    if not ids.size:
        raise ChargptError("generation needs a prompt of at least one character")
    if ids.dtype.kind not in "iu":
        raise ChargptError(f"ids are {ids.dtype}; expected whole numbers: use Vocab.encode")
    if not 0 <= ids.min() <= ids.max() < config.vocab_size:
        raise ChargptError(f"ids reach from {ids.min()} to {ids.max()}; the vocabulary has {config.vocab_size}")
    return ids.astype(np.int64)
