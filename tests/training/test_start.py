from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chargpt.errors import ChargptError
from chargpt.evaluation.loss import evaluate
from chargpt.model.config import GPTConfig
from chargpt.params import Params
from chargpt.training.start import continued_model, new_model
from tests.conftest import random_model
from tests.training.test_loop import VAL, params_with, run


def test_a_new_model_follows_from_the_seed(tmp_path: Path) -> None:
    weights = []
    for seed in (1, 1, 2):
        params = params_with(tmp_path, seed=seed, n_layer=2, n_head=4, n_embd=16, block_size=5, dropout=0.25)
        torch.manual_seed(len(weights))
        model = new_model(params, 11)
        assert model.config == GPTConfig(11, 5, 2, 4, 16, dropout=0.25, activation="gelu", attention_scale="head")
        weights.append(model.wte.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_migrated_model_of_another_shape(toy_params: Params) -> None:
    migrated = random_model(GPTConfig(11, 16, 3, 2, 8, activation="relu", attention_scale="embedding"))
    with pytest.raises(ChargptError) as error:
        continued_model(migrated, toy_params)
    assert str(error.value) == (
        "params.yaml does not fit init=migrated: n_layer is 1, the migrated model has 3; block_size is 8, the migrated"
        " model has 16; use -S n_layer=3 -S block_size=16"
    )
    with pytest.raises(
        ChargptError, match="n_head is 2, the migrated model has 3; n_embd is 8, the migrated model has 12"
    ):
        continued_model(random_model(GPTConfig(11, 8, 1, 3, 12)), toy_params)


def test_migrated_model_starts_where_it_was(tmp_path: Path) -> None:
    """But with the dropout of params.yaml."""
    params = params_with(tmp_path, dropout=0.4)
    migrated = random_model(GPTConfig(11, 8, 1, 2, 8, dropout=0.1, activation="relu", attention_scale="embedding"))
    before = {name: t.clone() for name, t in migrated.state_dict().items()}
    model, rows = run(params, model=continued_model(migrated, params))
    assert rows[0].val_loss == evaluate(migrated, VAL)
    assert model.config == replace(migrated.config, dropout=0.4)
    assert all(torch.equal(t, before[name]) for name, t in migrated.state_dict().items()), "it is not trained itself"
