"""Convert legacy weights to a model file that computes the same function."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chargpt.checkpoint import load_model, save_model
from chargpt.data import Ids
from chargpt.errors import ChargptError
from chargpt.evaluation import evaluate
from chargpt.legacy.dialect import (
    SCORED_CHARACTERS,
    DoesNotFitCorpus,
    build_model,
    choose_dialect,
    frequency_loss,
    score_dialects,
)
from chargpt.legacy.directory import read_legacy
from chargpt.vocab import Vocab


@dataclass(frozen=True)
class Migration:
    """The result of a migration. Losses are in nats per character.

    max_parameter_error: largest difference between a legacy value and the written value; it is exactly 0.0.
    """

    parameters: int
    max_parameter_error: float
    dialect: str
    val_loss: float
    dialect_losses: dict[str, float]

    def metrics(self) -> dict[str, Any]:
        """The content of metrics/migrate.json. Its names occur neither in params.yaml nor in metrics/evaluate.json."""
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
        """The result as one line for the user."""
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

    vocab: vocabulary of the text that the model was trained on. ids: validation part of this text, 1-D unsigned, at
    least two. dialect: one of DIALECTS, or `auto` to find it. Raises DoesNotFitCorpus if the weights do not fit the
    text, and ChargptError if a file is bad or the loss is not finite.
    """
    weights = read_legacy(weights_dir, config_path)
    if weights.sizes["vocab_size"] != len(vocab):
        raise DoesNotFitCorpus(
            f"{weights_dir}: the weights know {weights.sizes['vocab_size']} characters, the text has {len(vocab)}:"
            " pass the text that this model was trained on"
        )
    losses: dict[str, float] = {}
    if dialect == "auto":
        sample = ids[:SCORED_CHARACTERS]
        losses = score_dialects(weights, sample)
        dialect = choose_dialect(losses, frequency_loss(sample), weights_dir)
    model = build_model(weights, dialect)
    val_loss = evaluate(model, ids)
    if not math.isfinite(val_loss):
        raise ChargptError(
            f"{weights_dir}: the validation loss is {val_loss}: a diverged model; nothing was written; use an earlier"
            " one"
        )
    save_model(output, model, vocab, {"dialect": dialect})
    read, _ = load_model(output)
    assert read.config == model.config
    written = read.state_dict()
    error = max(float(np.abs(written[name].numpy() - tensor).max()) for name, tensor in weights.tensors.items())
    return Migration(weights.parameters, error, dialect, val_loss, losses)
