"""Numbers at their limits: each ends well, or in the project's own error."""

from __future__ import annotations

import importlib
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chargpt.errors import ChargptError
from chargpt.evaluation.loss import evaluate
from chargpt.model.config import GPTConfig
from chargpt.model.file import load_model, save_model
from chargpt.model.gpt import GPT
from chargpt.project.params_file import load_params
from chargpt.text.tokens import split_sizes
from chargpt.training.loop import Trainer
from chargpt.training.start import new_model
from tests.conftest import choose, random_model, write_params
from tests.training.test_loop import TRAIN, VAL, Listener

STAGES = ("prepare", "train", "evaluate", "sample", "export")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pipeline(text: str, *stages: str, **changes: object) -> None:
    """Run stages in the working directory, in this process."""
    Path("text.txt").write_text(text, encoding="utf-8", newline="\n")
    params = load_params(write_params(Path("params.yaml"), corpus="text.txt", prompt=text[:1] or " ", **changes))
    for stage in stages or STAGES:
        importlib.import_module(f"stages.{stage}").main(params)


# texts


def test_a_text_of_one_repeated_character(folder: Path) -> None:
    pipeline("a" * 2000)
    found = json.loads(Path("metrics/evaluate.json").read_text())
    assert found.pop("params")["lr"] == 0.018
    assert found == {
        "val_loss": 0.0,
        "bits_per_char": 0.0,
        "perplexity": 1.0,
        "ngram_bits_per_char": 0.0,
        "copied": {"longest": 199, "share": 1.0, "validation_longest": 199, "validation_share": 1.0},
    }
    assert Path("artifacts/sample.txt").read_text() == "\n".join(f"=== sample {i} ===\n{'a' * 21}\n" for i in (1, 2))
    assert json.loads(Path("artifacts/hf/tokenizer.json").read_text())["model"]["vocab"] == {"a": 0}


@given(
    st.integers(0, 10**12) | st.integers(0, 50),
    st.floats(0, 1, exclude_min=True, exclude_max=True) | st.sampled_from([0.1, 0.5, 1e-12]),
)
def test_a_split_has_both_parts_or_is_refused(length: int, val_fraction: float) -> None:
    """Refused just where a part would have fewer than two; near that, where floats round, either is right."""
    exact = (1 - Fraction(val_fraction)) * length
    error = Fraction(length + 1) / 2**50
    try:
        train, val = split_sizes(length, val_fraction)
    except ChargptError:
        assert exact < 2 + error or length - exact <= 1 + error
    else:
        assert train + val == length and min(train, val) >= 2
        assert exact - 1 - error < train <= exact + error


def test_a_batch_larger_than_the_data(folder: Path) -> None:
    pipeline("abc" * 10, batch_size=500)
    assert json.loads(Path("metrics/evaluate.json").read_text())["val_loss"] < 3


# losses


def diverged() -> GPT:
    """Weights that are numbers and predictions that are not: their products overflow."""
    model = random_model(GPTConfig(11, 8, 1, 2, 8))
    model.lm_head.weight.data.fill_(3e38)
    model.lm_head.weight.data[::2] *= -1
    return model


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("grad_clip", [0.0, 1.0])
def test_exploding_gradients(tmp_path: Path, optimizer: str, grad_clip: float) -> None:
    """Losses of 1e18 nats, whose squared gradients overflow: the best finite model, or an error."""
    changes = {"optimizer": optimizer, "grad_clip": grad_clip, "lr": 10.0, "warmup_iters": 0}
    params = load_params(write_params(tmp_path / "params.yaml", max_iters=30, eval_interval=1, **changes))
    model = new_model(params, 11)
    model.lm_head.weight.data *= 1e20
    listener = Listener()
    try:
        model = Trainer(model, TRAIN, VAL, params, report=listener).train()
    except ChargptError as error:
        assert "training diverged, no model was written; lower the learning rate (-S lr=3.3)" in str(error)
    else:
        assert all(p.isfinite().all() for p in model.parameters())
        assert evaluate(model, VAL) == min(row.val_loss for row in listener.rows)
    assert listener.rows[0].val_loss > 1e15


def test_a_diverged_model_is_not_evaluated_nor_sampled(folder: Path) -> None:
    pipeline("abcdefghijk" * 40, "prepare", "train")
    _, vocab = load_model("artifacts/model.safetensors")
    save_model("artifacts/model.safetensors", diverged(), vocab, {})
    with pytest.raises(ChargptError, match="the validation loss is nan: the weights of a diverged model"):
        pipeline("abcdefghijk" * 40, "evaluate")
    with pytest.raises(ChargptError, match="the model's predictions are not finite"):
        pipeline("abcdefghijk" * 40, "sample")
    assert not Path("metrics/evaluate.json").exists() and not Path("artifacts/sample.txt").exists()


# sampling

FINITE = st.floats(-(2.0**127), 2.0**127, width=32)


@given(
    st.lists(FINITE, min_size=1, max_size=6),
    st.sampled_from([0.0, 5e-324, 0.5, 1 - 2**-53]),
    st.sampled_from([0.0, 5e-324, 1e-300, 1e-9, 1.0, 1e9, 1.7e308]),
    st.sampled_from([None, 1, 2, 10**18]),
    st.sampled_from([None, 5e-324, 1e-300, 0.5, 1 - 2**-53, 1.0]),
)
def test_choosing_at_the_limits_of_floats(
    values: list[float], u: float, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    """Always an id of a positive probability; where the temperature leaves one only, the likeliest."""
    logits = np.array([values], np.float32)
    chosen = choose(logits, np.array([u]), temperature, top_k, top_p)[0]
    assert 0 <= chosen < len(values)
    gap = float(logits.max()) - float(logits[0, chosen])
    assert gap <= 745 * max(temperature, 5e-324)  # exp(-745) is the smallest number above 0
    if top_k == 1 or temperature == 0 or (top_p is not None and top_p < 1 / len(values)):
        assert gap == 0
