from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chargpt.errors import ChargptError
from chargpt.inference.decoder import TorchDecoder, make_decoder
from chargpt.inference.sampling import Random, Sampling, generate, generate_each, stream
from chargpt.model.config import GPTConfig
from chargpt.model.gpt import GPT
from chargpt.text.vocab import Vocab
from tests.conftest import choose, model_file, random_model


@pytest.mark.parametrize("seed", [-1, 1.5, "a"])
def test_invalid_seeds_are_refused(seed: Any) -> None:
    with pytest.raises(
        ChargptError, match=f"^seed is {seed!r}; it must be a whole number from 0 to 4294967295, or None"
    ):
        Random(seed)


@pytest.mark.parametrize("seed", [0, 1337, 2**32 - 1])
def test_random_numbers_are_those_of_torch(seed: int) -> None:
    """So the same seed gives the same text as in releases that drew with torch."""
    theirs, ours = torch.Generator().manual_seed(seed), Random(seed)
    seeds = [int(torch.randint(2**63 - 1, (), generator=theirs)) for _ in range(3)]
    for row, row_seed in zip(ours.split(3), seeds, strict=True):
        expected = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(row_seed)).numpy()
        assert np.array_equal(row.numbers(500), expected)
    assert ours.numbers(1)[0] == torch.rand(1, dtype=torch.float64, generator=theirs).item()
    assert Random().numbers(1)[0] != Random().numbers(1)[0]


logits = st.lists(st.sampled_from([0.0, 1.0, 1.0, -3.0, 50.0, -1e30]), min_size=1, max_size=9)
uniform = st.floats(0, 1, exclude_max=True)


@given(logits, uniform, st.integers(1, 12))
def test_top_k_keeps_k_even_with_ties(values: list[float], u: float, k: int) -> None:
    kept = sorted(range(len(values)), key=lambda i: -values[i])[:k]
    assert choose(np.array([values]), np.array([u]), top_k=k).item() in kept


@given(logits, uniform, st.sampled_from([1e-9, 0.1, 0.5, 0.9, 1.0]))
def test_top_p_keeps_the_fewest_that_reach_p(values: list[float], u: float, p: float) -> None:
    row = torch.tensor([values], dtype=torch.float64)
    probs, order = torch.sort(row.softmax(-1)[0], descending=True, stable=True)
    kept, mass = [], 0.0
    for q, i in zip(probs.tolist(), order.tolist(), strict=True):
        kept.append(i)
        mass += q
        if p < 1 and mass >= p - 1e-12:
            break
    choice = choose(row.numpy(), np.array([u]), top_p=p).item()
    assert choice in kept
    if p == 1:  # no restriction
        assert choice == choose(row.numpy(), np.array([u])).item()


@pytest.mark.parametrize("u", [0.0, 0.5, math.nextafter(1, 0)])
@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1e-6}, {"top_k": 1}, {"top_p": 1e-9}])
def test_greedy_limits(u: float, options: dict[str, float]) -> None:
    row = np.array([[1.0, 3.0, 2.0, -1e30]], np.float32)
    assert choose(row, np.array([u]), **options).item() == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 0.5}, [0.25, 0.09, 0.0225, 0.0025]),  # squared
        ({"temperature": 2.0}, [0.5**0.5, 0.3**0.5, 0.15**0.5, 0.05**0.5]),
        ({"temperature": 1e6}, [1, 1, 1, 1]),
        ({"top_k": 2}, [0.5, 0.3, 0, 0]),
        ({"top_p": 0.5}, [0.5, 0, 0, 0]),
        ({"top_p": 0.6}, [0.5, 0.3, 0, 0]),
        ({"top_k": 3, "top_p": 0.83}, [0.5, 0.3, 0, 0]),  # 0.83 of the 0.95 that top_k keeps
        ({"top_k": 2, "temperature": 0.5}, [0.25, 0.09, 0, 0]),
        ({"top_k": 9, "top_p": 1.0}, [0.5, 0.3, 0.15, 0.05]),
    ],
)
def test_top_k_and_top_p_keep_proportions(options: dict[str, Any], expected: list[float]) -> None:
    """Whatever the order of the characters; a row is drawn on its own."""
    n, order = 2000, [2, 0, 3, 1]
    rows = np.tile(np.log([0.5, 0.3, 0.15, 0.05]), (2 * n, 1))
    rows[n:] = rows[n:, order] + 7
    drawn = choose(rows, np.tile((np.arange(n) + 0.5) / n, 2), **options)
    share = np.array(expected) / np.sum(expected)
    assert np.abs(np.bincount(drawn[:n], minlength=4) / n - share).max() <= 1.5 / n
    assert np.abs(np.bincount(drawn[n:], minlength=4) / n - share[order]).max() <= 1.5 / n


def test_ties_keep_the_lower_ids() -> None:
    """In a row so long that an unstable sort shows."""
    u = (np.arange(1000) + 0.5) / 1000
    assert set(choose(np.zeros((1000, 500)), u, top_k=7)) == set(range(7))
    assert set(choose(np.zeros((1000, 500)), u, top_p=7 / 500)) <= set(range(8))
    assert set(choose(np.zeros((1000, 500)), u, temperature=0)) == {0}


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_nonfinite_predictions_are_refused(wrong: float, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(np.array([[0.0, 1.0], [wrong, 1.0], [1.0, wrong]]), np.full(3, 0.9), temperature).tolist() == [
        1,
        -1,
        -1,
    ]
    model = even_model()
    model.lm_head.bias.data[3] = wrong
    for decoder in (make_decoder, TorchDecoder):
        monkeypatch.setattr("chargpt.inference.sampling.make_decoder", decoder)
        with pytest.raises(
            ChargptError, match=r"^the model's predictions are not finite: training diverged; use another"
        ):
            generate(model, torch.tensor([[0], [1]]), 2, Sampling(temperature=temperature))


def even_model(block_size: int = 16) -> GPT:
    """All 11 characters are equally likely."""
    model = random_model(GPTConfig(11, block_size, 1, 1, 4))
    model.lm_head.weight.data.zero_()
    model.lm_head.bias.data.zero_()
    return model


def test_a_long_text_has_no_period() -> None:
    """A text without a pattern has no pattern of the length that is generated in one call."""
    text = generate(even_model(), torch.tensor([[0]]), 600, random=Random(1))[0, 1:]
    for period in range(1, 400):
        assert (text[period:] == text[:-period]).mean() < 0.3, period
    assert np.bincount(text, minlength=11).min() > 20


def test_a_random_moves_on_between_texts(model: GPT) -> None:
    """The generator moves on, so that a second text is another one; without one, each text is another one."""
    idx, random = [[1]], Random(3)
    first, second = (generate(model, idx, 30, random=random) for _ in range(2))
    assert not np.array_equal(first, second)
    assert np.array_equal(generate_each(model, idx, 30, random=Random(3))[0], first[0])
    assert not np.array_equal(generate(model, idx, 30), generate(model, idx, 30))


def test_model_file_and_model_generate_the_same_text(model: GPT, vocab: Vocab) -> None:
    """With ids of any kind."""
    file, expected = model_file(model, vocab), generate(model, [[1, 2]], 30, random=Random(1))
    for idx in ([[1, 2]], np.array([[1, 2]], np.uint8), torch.tensor([[1, 2]])):
        assert np.array_equal(generate(file, idx, 30, random=Random(1)), expected)


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"temperature": 3.0}, {"top_k": 2}, {"top_p": 0.3}, {"exact": True}, {"top_k": 1}]
)
def test_generate_stream_and_generate_each_use_the_sampling(model: GPT, options: dict[str, Any]) -> None:
    idx = torch.tensor([[1, 2], [1, 2]])
    plain = generate(model, idx, 40, random=Random(5))
    expected = generate(model, idx, 40, Sampling(**options), Random(5))
    assert not np.array_equal(expected, plain)
    streamed = np.stack(list(stream(model, idx, 40, Sampling(**options), Random(5))), axis=1)
    assert np.array_equal(streamed, expected[:, 2:])
    each = generate_each(model, [idx[0], idx[1]], 40, Sampling(**options), Random(5))
    assert np.array_equal(np.stack(each), expected)


def test_zero_tokens_and_zero_prompts(model: GPT) -> None:
    assert generate(model, torch.tensor([[1, 2]]), 0).tolist() == [[1, 2]]
    assert generate_each(model, [], 5) == []


@pytest.mark.parametrize("length", [1, 3, 8, 20])
def test_generate_continues_prompts_of_any_length(model: GPT, length: int) -> None:
    V = model.config.vocab_size
    idx = np.random.default_rng(1).integers(0, V, (2, length))
    out = generate(model, idx, 30, random=Random(2))
    assert out.shape == (2, length + 30)
    assert out.dtype == np.int64
    assert np.array_equal(out[:, :length], idx)
    assert out.min() >= 0 and out.max() < V
    assert np.array_equal(out, generate(model, idx, 30, random=Random(2)))
    assert not np.array_equal(out, generate(model, idx, 30, random=Random(3)))


def test_past_the_context_the_last_eighth_is_read_again() -> None:
    """block_size 16, prompt 16: the next character is predicted from 16, the one after from the last 2."""
    model = random_model(GPTConfig(11, 16, 1, 2, 8))
    idx = torch.arange(16)[None] % 11
    expected = idx
    for size in [16, *range(2, 17), 2, 3]:
        expected = torch.cat([expected, model(expected[:, -size:])[:, -1].argmax(-1, keepdim=True)], 1)
    assert np.array_equal(generate(model, idx, 18, Sampling(temperature=0)), expected)


@pytest.mark.parametrize(("length", "exact"), [(2, False), (7, True)])
def test_greedy_text_is_that_of_a_recomputation(model: GPT, length: int, exact: bool) -> None:
    """Within the context; with `exact`, past the context of 8 too."""
    idx = torch.arange(length)[None]
    expected = idx
    for _ in range(6):
        expected = torch.cat([expected, model(expected[:, -8:])[:, -1].argmax(-1, keepdim=True)], 1)
    assert np.array_equal(generate(model, idx, 6, Sampling(temperature=0, exact=exact)), expected)


def test_prompts_of_different_lengths(model: GPT) -> None:
    prompts = [torch.tensor(ids) for ids in ([1, 2, 3], [4], [3, 2, 1], [1] * 20)]
    texts = generate_each(model, prompts, 12, random=Random(4))
    assert [len(text) for text in texts] == [15, 13, 15, 32]
    for prompt, text in zip(prompts, texts, strict=True):
        assert np.array_equal(text[: len(prompt)], prompt)
    others = [torch.tensor([7, 7]), torch.tensor([4]), torch.tensor([5]), torch.tensor([6] * 4)]
    assert np.array_equal(generate_each(model, others, 12, random=Random(4))[1], texts[1])
    assert np.array_equal(generate_each(model, prompts[:1], 12, random=Random(4))[0], texts[0])
    with pytest.raises(ChargptError, match="at least one character"):
        generate_each(model, [*prompts, torch.zeros(0, dtype=torch.int64)], 1)


def test_a_context_of_one_character() -> None:
    model = random_model(GPTConfig(5, 1, 1, 1, 4))
    assert generate(model, torch.tensor([[0, 1, 2]]), 5).shape == (1, 8)


def test_successor_model() -> None:
    """A model that always predicts the next id counts, whatever the sampling."""
    model = GPT(GPTConfig(7, 4, 1, 1, 8))
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    model.ln_f.weight.data.fill_(1)
    model.wte.weight.data[:, :7] = torch.eye(7)
    model.lm_head.weight.data[:, :7] = 100 * torch.eye(7).roll(1, 0)
    out = generate(model, torch.tensor([[0], [3]]), 9, random=Random(0))
    assert out.tolist() == [[(s + i) % 7 for i in range(10)] for s in (0, 3)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1}, r"^temperature is -1; it must be a finite number of at least 0 \(0 is greedy\)"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": "0.8"}, "^temperature is '0.8'; it must be a finite number"),
        ({"top_k": 0}, "^top_k is 0; it must be a whole number of at least 1"),
        ({"top_k": 1.5}, "^top_k is 1.5; it must be a whole number"),
        ({"top_p": 0.0}, "^top_p is 0.0; it must be a number above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
    ],
)
def test_sampling_refuses_invalid_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ChargptError, match=message):
        Sampling(**values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"idx": [[1], [1, 2]]}, "^prompts of different lengths: use generate_each"),
        ({"idx": [[1.0]]}, "^ids are float64; expected whole numbers: use Vocab.encode"),
        ({"idx": torch.zeros(1, 0, dtype=torch.int64)}, "^generation needs a prompt of at least one character"),
        ({"idx": torch.tensor([1])}, r"ids have shape \(1,\); expected \(B, T\)"),
        ({"idx": torch.tensor([[99]])}, "ids reach from 99 to 99; the vocabulary has 14"),
        ({"idx": torch.tensor([[3, 14]])}, "ids reach from 3 to 14; the vocabulary has 14"),
        ({"idx": torch.tensor([[-1, 0]])}, "ids reach from -1 to 0"),
        ({"max_tokens": 1.5}, "^max_tokens is 1.5; it must be a whole number"),
        ({"max_tokens": -1}, "^max_tokens is -1; it must be a whole number of at least 0"),
    ],
)
def test_generate_refuses_invalid_arguments(model: GPT, change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"model": model, "idx": torch.tensor([[1]]), "max_tokens": 1} | change
    for call in (generate, stream):  # a stream refuses before its first id is asked for
        with pytest.raises(ChargptError, match=message):
            call(**arguments)  # type: ignore[operator]
