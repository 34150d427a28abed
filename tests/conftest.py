from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from ruamel.yaml import YAML

from chargpt.model import GPT, GPTConfig
from chargpt.params import Params, load_params
from chargpt.vocab import Vocab
from tests.pipeline import ROOT

# a pipeline run at this size takes seconds
TOY: dict[str, Any] = {
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 8,
    "block_size": 8,
    "batch_size": 4,
    "max_iters": 10,
    "eval_interval": 5,
    "warmup_iters": 2,
    "num_samples": 2,
    "max_tokens": 20,
    "prompt": "a",
    "device": "cpu",
}


def write_params(path: Path, **changes: Any) -> Path:
    """The committed params.yaml with toy sizes and the given changes, written to `path`."""
    values = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8")) | TOY | changes
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(values, file)
    return path


@pytest.fixture
def toy_params(tmp_path: Path) -> Params:
    return load_params(write_params(tmp_path / "params.yaml"))


@pytest.fixture
def vocab() -> Vocab:
    return Vocab("\n !abcdefgh\u00e9\u2603\U0001f600")


@pytest.fixture
def model(vocab: Vocab) -> GPT:
    return random_model(GPTConfig(len(vocab), block_size=8, n_layer=2, n_head=2, n_embd=8))


def random_model(config: GPTConfig, seed: int = 0) -> GPT:
    """A model whose every weight matters: biases and norms random too, attention far from uniform."""
    torch.manual_seed(seed)
    model = GPT(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, mean=1.0 if p.dim() == 1 and p is not model.lm_head.bias else 0.0, std=0.3)
    return model.eval()


# one slow example on a busy machine is no failure
hypothesis.settings.register_profile("chargpt", deadline=None)
hypothesis.settings.load_profile("chargpt")
