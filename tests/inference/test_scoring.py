from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import chargpt
from chargpt.errors import ChargptError
from chargpt.evaluation.loss import evaluate
from chargpt.inference.decoder import pack
from chargpt.inference.facade import LanguageModel, until
from chargpt.inference.sampling import Random, Sampling, generate_each
from chargpt.inference.scoring import losses
from chargpt.model.config import GPTConfig
from chargpt.model.file import save_model
from chargpt.model.gpt import GPT
from chargpt.text.vocab import Vocab
from tests.conftest import model_file, random_model

CONFIGS = [
    GPTConfig(14, 8, 2, 2, 8),
    GPTConfig(14, 40, 1, 1, 36, activation="relu", attention_scale="embedding"),
    GPTConfig(70, 33, 1, 2, 66),
    GPTConfig(1, 1, 1, 1, 1),
]
LETTERS = "\n !abcdefgh\u00e9\u2603\U0001f600"


def brute_force(model: GPT, ids: np.ndarray, kept: int) -> np.ndarray:
    """The bits of each character but the first, in float64, from as much context as generation would have."""
    double, T, bits, start = model.double(), model.config.block_size, [], 0
    for i in range(1, len(ids)):
        if i - start > T:
            start = i - kept
        logits = double(torch.from_numpy(ids[None, start:i]))[0, -1]
        bits.append(-logits.log_softmax(-1)[ids[i]].item() / math.log(2))
    model.float()
    return np.array(bits)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_scores_are_those_of_brute_force_in_float64(config: GPTConfig) -> None:
    """Of texts shorter and longer than the context, together; each character sees an eighth of it, or all there is."""
    model, rng, kept = random_model(config), np.random.default_rng(0), max(1, config.block_size // 8)
    texts = [rng.integers(0, config.vocab_size, n) for n in (2, 1, 9, 3 * config.block_size + 5, 2, 41)]
    nats = np.concatenate([nats for nats, _ in losses(pack(model), texts)])
    found = np.split(nats / math.log(2), np.cumsum([len(ids) - 1 for ids in texts])[:-1])
    for ids, bits in zip(texts, found, strict=True):
        expected = brute_force(model, ids, kept)
        np.testing.assert_allclose(bits, expected, atol=1e-4)
        assert abs(bits.sum() - expected.sum()) < 1e-4 * max(1, len(ids) / 20)


def test_in_the_windows_of_evaluate_the_score_is_the_validation_loss() -> None:
    model, ids = random_model(GPTConfig(65, 64, 2, 2, 32)), np.random.default_rng(1).integers(0, 65, 10_000)
    nats = np.concatenate([nats for nats, _ in losses(pack(model), [ids], kept=1)])
    assert nats.mean() == pytest.approx(evaluate(model, ids.astype(np.uint8)), abs=1e-6)


@pytest.fixture(scope="module")
def language() -> LanguageModel:
    model, vocab = random_model(GPTConfig(len(LETTERS), 8, 2, 2, 12)), Vocab(LETTERS, 3, 1000)
    return LanguageModel(model_file(model, vocab))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_score_does_not_depend_on_neighbours_or_threads(
    language: LanguageModel, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["".join(np.random.default_rng(i).choice(list(LETTERS), i * 7 % 50)) for i in range(60)]
    alone = [language.score(text) for text in texts]
    monkeypatch.setattr("numba.config.NUMBA_NUM_THREADS", threads)
    together = language.score(texts)
    assert together.bits.tolist() == [float(scores.bits[0]) for scores in alone]
    for i, scores in enumerate(alone):
        assert np.array_equal(together.chars(i), scores.chars(0))


@settings(max_examples=60)
@given(st.lists(st.text(st.characters(codec=None, exclude_categories=()), max_size=30), max_size=4))
def test_any_text_has_a_score(language: LanguageModel, texts: list[str]) -> None:
    """Lone surrogates too."""
    scores = language.score(texts)
    for i, text in enumerate(texts):
        closest = language.vocab.closest(text)
        assert scores.lengths[i] == len(closest)
        assert scores.unknown[i] == sum(c not in LETTERS for c in closest)
        assert scores.bits[i] == scores.chars(i).sum()
        predictions = list(language.predictions(text))
        assert "".join(p.character for p in predictions) == closest
        np.testing.assert_allclose([p.bits for p in predictions], scores.chars(i), atol=1e-6)
        assert [p.rank is None for p in predictions] == [c not in LETTERS for c in closest]


def test_unknown_characters_cost_an_escape_and_are_read_as_the_neutral_one(language: LanguageModel) -> None:
    stand_in = language.vocab.itos[language.neutral]
    bits = language.score(["abxc", f"ab{stand_in}c"])
    escape = math.log2(1000 / 4) + math.log2(0x110000 - 0x800 - len(LETTERS))
    assert bits.unknown.tolist() == [1, 0]
    assert bits.chars(0)[2] == pytest.approx(escape) == language.vocab.unknown_bits
    assert np.array_equal(np.delete(bits.chars(0), 2), np.delete(bits.chars(1), 2))
    assert Vocab("ab").unknown_bits == pytest.approx(math.log2(1_000_000) + math.log2(0x110000 - 0x800 - 2))


def test_text_is_read_as_users_have_it(language: LanguageModel) -> None:
    """With a composed or a decomposed accent, and line ends of any kind."""
    expected = language.score("b\u00e9\na")
    for text in ("be\u0301\na", "b\u00e9\r\na", "b\u00e9\ra"):
        assert language.score(text).bits.tolist() == expected.bits.tolist(), text
        assert language.generate(text, 5, seed=1) == text + language.generate("b\u00e9\na", 5, seed=1)[4:]
    with pytest.raises(ChargptError, match="'x'"):
        language.generate("x")
    with pytest.raises(ChargptError, match="begins after something"):
        language.score("a", after="")


def test_predictions_have_ranks_and_alternatives(language: LanguageModel) -> None:
    text = "abc de\u2603\nfa"
    for given_, shown in zip(text, language.predictions(text, after="b", alternatives=14), strict=True):
        probabilities = [p for _, p in shown.likeliest]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert probabilities == sorted(probabilities, reverse=True)
        assert shown.likeliest[shown.rank - 1] == (given_, pytest.approx(2**-shown.bits))


def test_a_state_reads_and_branches(language: LanguageModel) -> None:
    """Past the context too."""
    text = "abc de\u2603\nfa! gh" * 3
    state, bits = language.start("\n"), language.score(text).chars(0)
    assert state.probabilities().sum() == pytest.approx(1, abs=1e-5)
    for place, character in enumerate(text):
        branch = state.copy()
        assert state.probabilities()[language.vocab.itos.index(character)] == pytest.approx(2 ** -bits[place], rel=1e-4)
        assert state.read(character) == pytest.approx(bits[place], abs=1e-4)
        assert branch.read(character + "b") >= bits[place] - 1e-4
    assert state.read("x") == language.vocab.unknown_bits


def test_generate_is_the_longer_functions(language: LanguageModel) -> None:
    prompts, ids = ["ab", "c", "de"], [language.vocab.encode(text) for text in ("ab", "c", "de")]
    rows = generate_each(language.model, ids, 30, Sampling(0.7, top_k=5), Random(3))
    expected = [language.vocab.decode(row) for row in rows]
    options = {"temperature": 0.7, "top_k": 5, "seed": 3}
    assert language.generate(prompts, 30, **options) == expected
    stopped = language.generate(prompts, 30, stop=["a", "\u2603"], **options)
    for prompt, text, short in zip(prompts, expected, stopped, strict=True):
        new = text[len(prompt) :]
        assert short == prompt + new[: min((new + "a").index("a"), (new + "\u2603").index("\u2603"))]
    assert len(language.generate("a", 5)) == 6


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=3), max_size=3))
def test_until_ends_before_the_stop_that_is_complete_first(text: str, stops: list[str]) -> None:
    """And holds back only what may be its beginning."""
    ended = next((end for end in range(len(text) + 1) if text[:end].endswith(tuple(stops))), None)
    expected = text if ended is None else text[: min(text.find(s) for s in stops if s in text[:ended])]
    pieces = list(until(text, stops))
    assert "".join(pieces) == expected
    shown = 0
    for length, piece in enumerate(pieces[:-1], 1):
        shown += len(piece)
        assert length - shown < max(map(len, stops), default=1)


def test_a_diverged_model_is_refused(model: GPT, vocab: Vocab) -> None:
    model.lm_head.bias.data[3] = math.nan
    with pytest.raises(ChargptError, match="not finite: training diverged"):
        LanguageModel(model_file(model, vocab)).score("abc")


def test_load_is_part_of_the_package(model: GPT, vocab: Vocab, tmp_path: Path) -> None:
    save_model(tmp_path / "m", model, Vocab(vocab.itos, 2, 77))
    loaded = chargpt.load(tmp_path / "m")
    assert (loaded.vocab, loaded.vocab.seen_once, loaded.vocab.length) == (vocab, 2, 77)
    assert loaded.score("abc").bits == LanguageModel(model_file(model, vocab)).score("abc").bits
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        chargpt.lode  # noqa: B018
