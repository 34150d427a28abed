"""`chargpt report`: write the page about the current model, compared with another version."""

from __future__ import annotations

import sys
from pathlib import Path

from chargpt.errors import ChargptError
from chargpt.files import read_json, write_text
from chargpt.paths import CURVE, METRICS, MODEL, TOKENS
from chargpt.project.git import git
from chargpt.project.metrics import metrics_at, previous_version
from chargpt.project.outputs import require_outputs


def write_report(output: Path, against: str | None = None, device: str = "auto") -> str | None:
    """Write the page to `output`. Returns the revision that the page compares with, or None if there is none.

    against: any revision or experiment; None takes the newest version in HEAD's history whose metrics differ.
    Raises ChargptError if an output of the pipeline is missing, or if the revision has no metrics.
    """
    from chargpt.device import pick_device
    from chargpt.evaluation.curve import read_curve
    from chargpt.evaluation.page import make_report
    from chargpt.model.file import load_model
    from chargpt.text.tokens import read_tokens

    if output.suffix.lower() != ".html" or git("ls-files", "--error-unmatch", "--", str(output)) is not None:
        raise ChargptError(f"{output}: not an .html file of its own; give another path with --output")
    require_outputs(MODEL, TOKENS, CURVE, METRICS)
    model, vocab = load_model(MODEL, pick_device(device))
    train_ids, val_ids = read_tokens(TOKENS, vocab)
    curve = read_curve(CURVE)
    if not against:
        previous = previous_version(read_json(METRICS))
    else:
        previous = (against, metrics_at(against))
        if not previous[1]:
            raise ChargptError(f"{against}: has no {METRICS}; name a revision that has it with --against")
    print("evaluating the model, for some seconds", file=sys.stderr)
    write_text(output, make_report(model, vocab, train_ids, val_ids, curve, previous).page)
    return previous[0] if previous else None
