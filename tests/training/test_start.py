from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chargpt.errors import ChargptError
from chargpt.evaluation.loss import evaluate
from chargpt.model.config import GPTConfig
from chargpt.params import Params
from chargpt.text.documents import Documents
from chargpt.text.vocab import Vocab
from chargpt.training.start import continued_model, new_model, surprise
from tests.conftest import model_file, random_model
from tests.training.test_loop import VAL, params_with, run

ELEVEN = Vocab("abcdefghijk")


def test_a_new_model_follows_from_the_seed(tmp_path: Path) -> None:
    weights = []
    for seed in (1, 1, 2):
        params = params_with(tmp_path, seed=seed, n_layer=2, n_head=4, n_embd=16, block_size=5, dropout=0.25)
        model = new_model(params, 11)
        assert model.config == GPTConfig(11, 5, 2, 4, 16, dropout=0.25, activation="gelu", attention_scale="head")
        weights.append(model.wte.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_model_file_of_another_shape_is_refused(toy_params: Params) -> None:
    source = model_file(random_model(GPTConfig(11, 16, 3, 3, 12)), ELEVEN)
    with pytest.raises(ChargptError) as error:
        continued_model(source, toy_params.model_copy(update={"init": "models/a"}), ELEVEN)
    assert str(error.value) == (
        "params.yaml does not fit init=models/a: n_layer is 1, its model has 3; n_head is 2, its model has 3; n_embd is"
        " 8, its model has 12; use -S n_layer=3 -S n_head=3 -S n_embd=12"
    )


def test_a_continued_model_starts_where_it_was(toy_params: Params) -> None:
    """With the dropout of params.yaml; and it is not trained itself."""
    source = random_model(GPTConfig(11, 8, 1, 2, 8, dropout=0.1, activation="relu", attention_scale="embedding"))
    before = {name: t.clone() for name, t in source.state_dict().items()}
    params = toy_params.model_copy(update={"dropout": 0.4})
    start = continued_model(model_file(source, ELEVEN), params, ELEVEN)
    assert start.config == replace(source.config, dropout=0.4)
    model, rows = run(params, model=start)
    assert rows[0].val_loss == evaluate(source, VAL)
    assert all(torch.equal(t, before[name]) for name, t in source.state_dict().items())
    assert not torch.equal(model.wte.weight, source.wte.weight)


def test_rows_are_matched_by_character(toy_params: Params) -> None:
    """Among characters that both texts have, the continued model has the preferences of the model in the file."""
    source, vocab = random_model(GPTConfig(11, 8, 1, 2, 8)), Vocab("Xacegikz")
    model = continued_model(model_file(source, ELEVEN), toy_params, vocab).eval()
    both = torch.tensor(ELEVEN.encode("acegik"))
    theirs, ours = source(both[None])[..., both], model(torch.arange(1, 7)[None])[..., 1:7]
    torch.testing.assert_close(ours, theirs)
    for new in (0, 7):  # which the file lacks
        torch.testing.assert_close(model.wte.weight[new], source.wte.weight[both].mean(0))
        torch.testing.assert_close(model.lm_head.weight[new], source.lm_head.weight[both].mean(0))
        assert model.lm_head.bias[new] == source.lm_head.bias[both].min()
    nothing = continued_model(model_file(source, ELEVEN), toy_params, Vocab("YZ"))
    torch.testing.assert_close(nothing.wte.weight[1], source.wte.weight.mean(0))


@pytest.mark.parametrize("documents", [False, True])
def test_a_text_is_as_foreign_as_its_beginning_is_surprising(toy_params: Params, documents: bool) -> None:
    """To the model in the file, whatever the parameters of the training."""
    source = random_model(GPTConfig(11, 8, 1, 2, 8))
    ids = np.resize(VAL, 9000)
    text = Documents(ids, np.array([4, 9000])) if documents else ids
    params = toy_params.model_copy(update=dict.fromkeys(("n_layer", "n_embd", "block_size", "dropout"), "auto"))
    expected = evaluate(source, ids[:8192]) / math.log(2)
    assert surprise(model_file(source, ELEVEN), params, ELEVEN, text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("block_size", "positions"), [(5, range(5)), (8, range(8)), (15, [*range(8), 4, 5, 6, 7, 4, 5, 6])]
)
def test_the_context_may_be_shorter_or_longer(tmp_path: Path, block_size: int, positions: list[int]) -> None:
    source = random_model(GPTConfig(11, 8, 1, 2, 8))
    model = continued_model(model_file(source, ELEVEN), params_with(tmp_path, block_size=block_size), ELEVEN)
    assert torch.equal(model.wpe.weight, source.wpe.weight[list(positions)])
