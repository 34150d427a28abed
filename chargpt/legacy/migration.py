"""Convert legacy weights to a model file that computes the same function."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chargpt.errors import ChargptError
from chargpt.evaluation.loss import evaluate
from chargpt.legacy.dialect import Evidence, build_model, choose_dialect, weigh_dialects
from chargpt.legacy.directory import LegacyWeights
from chargpt.model.file import read_model, save_model
from chargpt.text.tokens import Ids
from chargpt.text.vocab import Vocab


@dataclass(frozen=True)
class Migration:
    """The result of a migration. Losses are in nats per character.

    max_parameter_error: largest difference between a legacy value and the written value; it is exactly 0.0.
    evidence: what showed the dialect; None if it was given.
    """

    parameters: int
    max_parameter_error: float
    dialect: str
    val_loss: float
    evidence: Evidence | None

    def record(self) -> dict[str, Any]:
        """The content of metrics/migrate.json."""
        found = self.evidence
        losses = {name: round(x, 6) for name, x in found.losses.items() if math.isfinite(x)} if found else {}
        lead = {"standard_errors": min(round(found.lead, 1), 999.0), "characters": found.characters} if found else {}
        return {
            "migrated_parameters": self.parameters,
            "max_parameter_error": self.max_parameter_error,
            "migrated_val_loss": round(self.val_loss, 6),
            "migrated_dialect": self.dialect,
            "dialect_losses": losses,
            "dialect_evidence": lead,
        }

    def report(self) -> str:
        """The result as one line for the user."""
        dialect = f"{self.dialect} ({self.evidence})" if self.evidence else self.dialect
        copied = f"{self.parameters} parameters, largest error {self.max_parameter_error}"
        return f"migrate: {copied}; dialect {dialect}; validation loss {self.val_loss:.4f}"


def migrate(
    weights: LegacyWeights,
    output: str | Path,
    vocab: Vocab,
    ids: Ids,
    *,
    train_ids: Ids | None = None,
    dialect: str = "auto",
) -> Migration:
    """Find the dialect of legacy weights, write the model to `output` and read it back to compare.

    vocab: vocabulary of the text that the model was trained on. ids: validation part of this text, 1-D unsigned, at
    least two. train_ids: its training part, read after `ids` if these do not show the dialect clearly. dialect: one of
    DIALECTS, or `auto` to find it. Raises DoesNotFitCorpus if the losses on the text do not show the dialect, and
    ChargptError if the loss is not finite.
    """
    evidence = None
    if dialect == "auto":
        evidence = weigh_dialects(weights, [ids] if train_ids is None else [ids, train_ids])
        dialect = choose_dialect(evidence, weights.folder)
    model = build_model(weights, dialect)
    val_loss = evaluate(model, ids)
    if not math.isfinite(val_loss):
        raise ChargptError(f"{weights.folder}: the validation loss is {val_loss}: a diverged model; use an earlier one")
    save_model(output, model, vocab, {"dialect": dialect})
    read = read_model(output)
    assert read.config == model.config
    error = max(float(np.abs(read.weights[name] - tensor).max()) for name, tensor in weights.tensors.items())
    return Migration(model.config.parameters, error, dialect, val_loss, evidence)
