"""Generate text, character by character."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from numbers import Integral, Real

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chargpt.errors import ChargptError
from chargpt.inference.decoder import IDS, Model, Options, make_decoder
from chargpt.model.config import GPTConfig

# Characters times parameters of one call: some milliseconds if the text is shown meanwhile. After a call, threads wait
# for one another.
SHOWN, WHOLE = 50_000_000, 200_000_000
KEPT_PART = 8  # the last 1/8 of a full context is kept: it predicts as well as all of it, and leaves 7/8 free


class Random:
    """Uniform random numbers: exactly those of torch's generator on a CPU with the same seed, without loading torch.

    seed: at least 0, of which the lowest 32 bits count; None for another one each time. Raises ChargptError for others.
    """

    def __init__(self, seed: int | None = None) -> None:
        if seed is not None and (not isinstance(seed, Integral) or seed < 0):
            raise ChargptError(f"seed is {seed!r}; it must be a whole number of at least 0, or None")
        self._state = np.random.RandomState(None if seed is None else seed & 0xFFFFFFFF)

    def integers(self, count: int) -> NDArray[np.uint64]:
        """(count,) uint64, all values equally likely."""
        words = self._state.randint(0, 1 << 32, size=(count, 2), dtype=np.uint32).astype(np.uint64)
        return words[:, 0] << np.uint64(32) | words[:, 1]

    def numbers(self, count: int) -> NDArray[np.float64]:
        """(count,) float64 in [0, 1)."""
        return (self.integers(count) & np.uint64((1 << 53) - 1)).astype(np.float64) * 2.0**-53

    def split(self, count: int) -> list[Random]:
        """Generators for the rows of a batch: the text of a row then does not depend on the number of rows."""
        return [Random(int(seed) % (2**63 - 1)) for seed in self.integers(count)]


def stream(
    model: Model,
    idx: ArrayLike,
    max_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    random: Random | None = None,
    exact: bool = False,
) -> Iterator[IDS]:
    """An iterator that yields the next id of each row, (B,) int64, `max_tokens` times.

    The arguments are those of `generate`. They are checked at the call, before the first id is asked for.
    """
    _check_options(model, max_tokens, temperature, top_k, top_p, random)
    ids = _check_ids(model.config, idx)
    rows = (random or Random()).split(len(ids))
    pieces = _pieces(model, ids, max_tokens, rows, SHOWN, temperature, top_k, top_p, exact)
    return (chosen for piece in pieces for chosen in piece.T)


def _pieces(
    model: Model,
    idx: IDS,
    max_tokens: int,
    rows: list[Random],
    work: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    exact: bool,
) -> Iterator[IDS]:
    """Yield the next ids of each row in pieces, (B, n) int64. work: characters times parameters of a piece."""
    block_size, vocab_size = model.config.block_size, model.config.vocab_size
    options = Options(
        float(temperature), min(int(top_k or vocab_size), vocab_size), 1.0 if top_p is None else float(top_p)
    )
    # number of characters that are read again when the context is full
    kept = block_size if exact else max(1, block_size // KEPT_PART)
    decoder, piece = make_decoder(model, len(idx)), max(1, work // model.config.parameters)
    recent = unread = idx[:, -block_size:]
    while max_tokens:
        if decoder.length + unread.shape[1] > block_size:
            decoder.forget()
            unread = recent[:, -kept:]
        count = min(max_tokens, piece, block_size + 1 - decoder.length - unread.shape[1])
        uniform = np.stack([row.numbers(count) for row in rows], axis=1)
        chosen = decoder.extend(unread, uniform, options).T
        if chosen.min() < 0:
            raise ChargptError("the model's predictions are not finite numbers: it diverged in training; use another")
        yield chosen
        unread = chosen[:, -1:]
        recent = np.concatenate([recent, chosen], axis=1)[:, -block_size:]
        max_tokens -= count


def generate(
    model: Model,
    idx: ArrayLike,
    max_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    random: Random | None = None,
    exact: bool = False,
) -> IDS:
    """Continue each row of idx (B, T), whole numbers, by `max_tokens` characters; return (B, T + max_tokens) int64.

    model: a model file as `read_model` returns it, or a `GPT` on any device.
    temperature: >= 0; 0 takes the likeliest character. top_k: >= 1 or None. top_p: in (0, 1] or None.
    random: the random numbers, None for other ones each time. The same state of `random` gives the same text.
    exact: what to do when the context is full. Position embeddings are learned, so a full context cannot slide on by
    one character: it must be read again from position 0. If `exact` is true, the last block_size characters are read
    again for each further character, which costs ten times as much. If it is false, the last eighth of the context is
    read again each time that the context is full. A prediction then sees between an eighth of block_size characters
    and all of them, with no measurable loss of quality.
    Raises ChargptError for an empty prompt or an argument out of its range.
    """
    _check_options(model, max_tokens, temperature, top_k, top_p, random)
    ids = _check_ids(model.config, idx)
    rows = (random or Random()).split(len(ids))
    new = _pieces(model, ids, max_tokens, rows, WHOLE, temperature, top_k, top_p, exact)
    return np.concatenate([ids, *new], axis=1)


def generate_each(
    model: Model,
    prompts: Sequence[ArrayLike],
    max_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    random: Random | None = None,
    exact: bool = False,
) -> list[IDS]:
    """Continue prompts of different lengths, each (T,) whole numbers, by `max_tokens` characters.

    The options are those of `generate`. Returns one array (T + max_tokens,) int64 for each prompt, in their order.
    Prompts of the same length are generated together. The other prompts do not change a text; its place in the list
    does, because that decides its random numbers.
    """
    _check_options(model, max_tokens, temperature, top_k, top_p, random)
    given = [_check_ids(model.config, np.asarray(prompt)[None])[0] for prompt in prompts]
    rows = (random or Random()).split(len(given))
    texts = list(given)
    for length in sorted({len(prompt) for prompt in given}):
        numbers = [i for i, prompt in enumerate(given) if len(prompt) == length]
        idx = np.stack([given[i] for i in numbers])
        new = _pieces(model, idx, max_tokens, [rows[i] for i in numbers], WHOLE, temperature, top_k, top_p, exact)
        for i, text in zip(numbers, np.concatenate([idx, *new], axis=1), strict=True):
            texts[i] = text
    return texts


def _check_ids(config: GPTConfig, idx: ArrayLike) -> IDS:
    """The ids as (B, T) int64."""
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


def _check_options(
    model: Model, max_tokens: int, temperature: float, top_k: int | None, top_p: float | None, random: Random | None
) -> None:
    if not hasattr(model, "config"):
        raise ChargptError(f"model is {model!r}; it must be what read_model returns, or a GPT")
    if not isinstance(random, Random | None):
        raise ChargptError(f"random is {random!r}; it must be a Random, as Random(1), or None")
    if not isinstance(max_tokens, Integral) or max_tokens < 0:
        raise ChargptError(f"max_tokens is {max_tokens!r}; it must be a whole number of at least 0")
    if not isinstance(temperature, Real) or not 0 <= temperature < math.inf:
        raise ChargptError(f"temperature is {temperature!r}; it must be a finite number of at least 0 (0 is greedy)")
    if top_k is not None and (not isinstance(top_k, Integral) or top_k < 1):
        raise ChargptError(f"top_k is {top_k!r}; it must be a whole number of at least 1")
    if top_p is not None and (not isinstance(top_p, Real) or not 0 < top_p <= 1):
        raise ChargptError(f"top_p is {top_p!r}; it must be a number above 0 and at most 1")
