"""Legacy weights to a model that computes the same function: the dialect is found by evidence.

Two things differ between releases of the legacy code and are not in its files: the activation (ReLU or
GELU) and the attention scale (by head size or by the whole width). A wrong guess shows as a higher loss on
the text the model was trained on, so the four combinations are scored on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from chargpt.checkpoint import load_model, save_model
from chargpt.data import Ids
from chargpt.errors import ChargptError
from chargpt.evaluation import evaluate
from chargpt.files import read_json
from chargpt.legacy import LegacyWeights, read_legacy, refuse_link
from chargpt.model import GPT, Activation, AttentionScale, GPTConfig
from chargpt.params import check_value
from chargpt.vocab import Vocab

DIALECTS = [f"{activation}-{scale}" for activation, scale in product(("gelu", "relu"), ("head", "embedding"))]
# the legacy loop: AdamW with torch's defaults at one rate, no warm-up, no clipping
LEGACY_LOOP = {
    "optimizer": "adamw",
    "warmup_iters": 0,
    "final_lr_fraction": 1.0,
    "weight_decay": 0.01,
    "beta1": 0.9,
    "beta2": 0.999,
    "grad_clip": 0.0,
}
SCORED_CHARACTERS = 10_000  # of the text, to compare dialects on
MIN_MARGIN = 0.005  # nats per character between the best two dialects; less is too close to tell


class DoesNotFitCorpus(ChargptError):
    """The weights were not trained on this text: other vocabulary, or no dialect explains the text."""


@dataclass(frozen=True)
class Migration:
    """What a migration found: the largest parameter error (exactly 0.0), and losses in nats per character."""

    parameters: int
    max_parameter_error: float
    dialect: str
    val_loss: float
    dialect_losses: dict[str, float]

    def metrics(self) -> dict[str, Any]:
        """The content of metrics/migrate.json; no name is one of params.yaml or metrics/evaluate.json."""
        return {
            "migrated_parameters": self.parameters,
            "max_parameter_error": self.max_parameter_error,
            "migrated_val_loss": round(self.val_loss, 6),
            "migrated_dialect": self.dialect,
            "dialect_losses": {
                name: round(loss, 6) for name, loss in self.dialect_losses.items() if math.isfinite(loss)
            },
        }

    def report(self) -> str:
        """One line for a person."""
        ranking = sorted(self.dialect_losses.items(), key=lambda item: item[1])
        scores = ", ".join(f"{name} {loss:.4f}" for name, loss in ranking)
        return (
            f"migrate: {self.parameters} parameters, largest error {self.max_parameter_error}; dialect {self.dialect}"
            + (f" (nats per character: {scores})" if scores else "")
            + f"; validation loss {self.val_loss:.4f}"
        )


def migrate(
    weights_dir: str | Path,
    output: str | Path,
    vocab: Vocab,
    ids: Ids,
    *,
    config_path: str | Path | None = None,
    dialect: str = "auto",
) -> Migration:
    """Read legacy weights, find their dialect, write the model to `output` and read it back to compare.

    vocab: of the text the model was trained on. ids: that text's validation part, 1-D unsigned, at least 2.
    dialect: one of DIALECTS, or `auto` to find it. Raises DoesNotFitCorpus, or ChargptError for bad files.
    """
    weights = read_legacy(weights_dir, config_path)
    if weights.sizes["vocab_size"] != len(vocab):
        raise DoesNotFitCorpus(
            f"{weights_dir}: the weights know {weights.sizes['vocab_size']} characters, the text has {len(vocab)}:"
            " pass the text that this model was trained on"
        )
    losses = {}
    if dialect == "auto":
        sample = ids[:SCORED_CHARACTERS]
        # with a single head, the head is the whole width and both scales are one
        candidates = [name for name in DIALECTS if weights.sizes["n_head"] > 1 or name.endswith("-head")]
        losses = {name: evaluate(build_model(weights, name), sample) for name in candidates}
        dialect = choose_dialect(losses, frequency_loss(sample), weights_dir)
    model = build_model(weights, dialect)
    val_loss = evaluate(model, ids)
    if not math.isfinite(val_loss):
        raise ChargptError(f"{weights_dir}: the validation loss is {val_loss}: a diverged model; nothing was written")
    save_model(output, model, vocab, {"dialect": dialect})
    read, _ = load_model(output)
    assert read.config == model.config
    written = read.state_dict()
    error = max(float(np.abs(written[name].numpy() - tensor).max()) for name, tensor in weights.tensors.items())
    return Migration(weights.parameters, error, dialect, val_loss, losses)


def build_model(weights: LegacyWeights, dialect: str) -> GPT:
    """The GPT with the legacy weights and the given dialect (`relu-embedding` and the like)."""
    activation, scale = dialect.split("-")
    config = GPTConfig(
        **weights.sizes, activation=cast(Activation, activation), attention_scale=cast(AttentionScale, scale)
    )
    with torch.device("meta"):
        model = GPT(config)
    model.load_state_dict({name: torch.from_numpy(t) for name, t in weights.tensors.items()}, assign=True)
    return model.eval()


def choose_dialect(losses: dict[str, float], without_context: float, weights_dir: str | Path = "weights") -> str:
    """The dialect with the lowest loss (nats per character).

    without_context: the loss of knowing the text's character frequencies only; a trained model is better.
    Raises DoesNotFitCorpus if none is, or if the best two are too close to tell.
    """
    losses = {name: loss if math.isfinite(loss) else math.inf for name, loss in losses.items()}
    ranking = sorted(losses, key=lambda name: losses[name])
    best, second = ranking[:2]
    table = ", ".join(f"{name} {losses[name]:.4f}" for name in ranking)
    if losses[best] >= without_context:
        raise DoesNotFitCorpus(
            f"{weights_dir}: no dialect explains the text better than its character frequencies do"
            f" ({without_context:.4f} nats per character; {table}): an untrained model, or not the text it was"
            " trained on; pass that text, or name the dialect (dialect in params.yaml, --dialect)"
        )
    if losses[second] - losses[best] < MIN_MARGIN:
        raise DoesNotFitCorpus(
            f"{weights_dir}: the best two dialects are too close to tell ({table}):"
            " name the right one (dialect in params.yaml, --dialect)"
        )
    return best


def legacy_settings(path: Path) -> dict[str, Any]:
    """What a legacy config.json says of training, as lines of params.yaml with which it goes on as before.

    Raises ChargptError if a value is none that params.yaml allows.
    """
    refuse_link(path)
    config = read_json(path)
    lines: dict[str, Any] = {
        name: config[name] for name in ("batch_size", "max_iters", "eval_interval", "device") if name in config
    }
    if "learning_rate" in config:
        lines |= {"lr": config["learning_rate"]} | LEGACY_LOOP
    for key, value in lines.items():
        check_value(key, value, str(path))
    return lines


def matching_params(model: GPT, dialect: str) -> dict[str, Any]:
    """The lines of params.yaml with which the train stage continues this migrated model."""
    names = ("n_layer", "n_head", "n_embd", "block_size", "dropout")
    return {"init": "migrated", "dialect": dialect} | {name: getattr(model.config, name) for name in names}


def frequency_loss(ids: Ids) -> float:
    """Entropy in nats per character of the ids' own frequencies."""
    counts = np.bincount(ids)
    p = counts[counts > 0] / len(ids)
    return float(-(p * np.log(p)).sum())
