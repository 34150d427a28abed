from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from chargpt.errors import ChargptError
from chargpt.inference import documents
from chargpt.inference.decoder import PackedModel, make_decoder, pack
from chargpt.inference.documents import write_documents
from chargpt.inference.sampling import Random, Sampling
from chargpt.model.config import GPTConfig
from tests.conftest import random_model

CONFIG = GPTConfig(7, block_size=16, n_layer=2, n_head=2, n_embd=8)
LINES, PARAGRAPHS = np.array([0]), np.array([0, 0])


@pytest.fixture(scope="module")
def packed() -> PackedModel:
    made = pack(random_model(CONFIG))
    assert isinstance(made, PackedModel)
    return made


def written(model: PackedModel, count: int, prompt: list[int], end: np.ndarray, **options: float) -> list[list[int]]:
    found = write_documents(model, np.array(prompt), end, Sampling(**options), Random(1))
    return [ids.tolist() for ids in islice(found, count)]


@pytest.mark.parametrize(
    ("prompt", "end"), [([0], LINES), ([0, 3, 2], LINES), ([0], PARAGRAPHS), ([0, 3, 0], PARAGRAPHS)]
)
def test_a_document_is_what_generate_writes_up_to_its_end(
    packed: PackedModel, prompt: list[int], end: np.ndarray
) -> None:
    """With the random numbers of its row; a context that is full continues with its last characters."""
    rows = Random(1).split(documents.BATCH)
    for row, ids in zip(rows, written(packed, 40, prompt, end), strict=False):
        expected = plainly(packed, prompt, row.numbers(400), end)
        assert ids[: len(expected)] == expected[: len(ids)] and (len(expected) > 100 or len(ids) == len(expected))


def plainly(model: PackedModel, prompt: list[int], numbers: np.ndarray, end: np.ndarray) -> list[int]:
    """Character by character, each from the context read again from its start."""
    context, found, step = list(prompt), [], len(prompt) - 1  # a number is left out for each character that is given
    while step < len(numbers):
        if len(context) > CONFIG.block_size:
            context, step = context[-2:], step + 1  # an eighth of 16
        chosen = make_decoder(model, 1).extend(np.array([context]), 0, numbers[[step], None], Sampling().choice(7))[
            0, 0
        ]
        step += 1
        context.append(int(chosen))
        found.append(int(chosen))
        if [*prompt, *found][-len(end) :] == end.tolist():
            break
    return found


def test_documents_are_in_the_order_in_which_they_began(packed: PackedModel) -> None:
    """Otherwise short ones would come first: the mean length does not depend on how many are asked for."""
    many = written(packed, 4000, [0], LINES)
    few = [
        ids for seed in range(20) for ids in islice(write_documents(packed, LINES, LINES, Sampling(), Random(seed)), 10)
    ]
    assert all(ids.index(0) == len(ids) - 1 for ids in many)
    lengths, first = np.array([len(ids) for ids in many]), np.array([len(ids) for ids in few])
    assert abs(lengths.mean() - first.mean()) < 4 * lengths.std() / len(few) ** 0.5
    assert written(packed, 100, [0], LINES) == many[:100]


def test_a_model_that_never_ends_a_document_is_refused(packed: PackedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "LONGEST", 200)
    model = random_model(CONFIG)
    model.lm_head.bias.data[0] = -1e4
    with pytest.raises(ChargptError, match="no document ended within 200 characters"):
        written(pack(model), 1, [0], LINES)
    with pytest.raises(ChargptError, match="the prompt has 17 characters with its line break; at most 16"):
        written(packed, 1, [0] + [1] * 16, LINES)
