"""Train the model on the tokens, from scratch or from a model file. An interrupted run continues."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chargpt.device import pick_device
from chargpt.errors import ChargptError
from chargpt.evaluation.curve import Curve, Row
from chargpt.model.file import ModelFile, read_model, save_model
from chargpt.paths import CURVE, INIT, MIGRATED, MODEL, TOKENS, VOCAB
from chargpt.text.tokens import read_tokens
from chargpt.text.vocab import Vocab
from chargpt.training.checkpoint import CheckpointStore
from chargpt.training.events import ALONE, Event, Log, Rank, Report, ShouldStop, Started, ignore, never
from chargpt.training.inputs import check_unchanged, read_inputs, training_values
from chargpt.training.loop import Trainer
from chargpt.training.processes import ProcessGroup
from chargpt.training.schedule import resolve
from chargpt.training.start import continued_model, new_model, surprise

if TYPE_CHECKING:
    from chargpt.params import Params


def main(
    params: Params,
    *,
    report: Report = ignore,
    should_stop: ShouldStop = never,
    rank: Rank = ALONE,
    deps: Mapping[str, Path] | None = None,
    checkpoints: Path | None = None,
    reread: Callable[[], Params] | None = None,
    **saving: Any,
) -> None:
    """Train, and write the model and its curve.

    report, should_stop: as for `Trainer`. rank: which process of the training this is. deps: the files that dvc.yaml
    names as inputs, by name; they and the parameters must not change meanwhile. checkpoints: the directory of the
    checkpoints of all runs; None saves none. reread: reads params.yaml again. saving: options of `CheckpointStore`.
    """
    with ProcessGroup(pick_device(params.device), rank) as group:
        curve, before = Curve(CURVE), read_inputs(params, group, deps or {})
        vocab = Vocab.load(VOCAB)
        train_ids, val_ids = read_tokens(TOKENS, vocab)
        source = read_source(params, vocab)
        bits = surprise(source, params, vocab, train_ids) if source else 0.0
        chosen = resolve(params, len(train_ids), bits, source.config if source else None)
        inputs = before | read_inputs(chosen, group, {})
        store = CheckpointStore(checkpoints, inputs, report=report, **saving) if checkpoints else None

        def record(event: Event) -> None:
            for row in event.rows if isinstance(event, Started) else (event,) if isinstance(event, Row) else ():
                curve.add(row)
            report(event)

        with store.locked() if store and group.rank == 0 else nullcontext():
            group.wait()  # until rank 0 has the lock
            given, decided = training_values(params), training_values(chosen)
            found = [f"{key}={value}" for key, value in decided.items() if value != given[key]]
            if found and group.rank == 0:
                report(Log(f"auto: {', '.join(found)}"))
            source = None if chosen.init == "scratch" else source
            start = continued_model(source, chosen, vocab) if source else new_model(chosen, len(vocab))
            trainer = Trainer(
                start, train_ids, val_ids, chosen, report=record, should_stop=should_stop, store=store, group=group
            )
            model = trainer.train()
            if group.rank == 0:
                check_unchanged(before, read_inputs(reread() if reread else params, group, deps or {}))
                save_model(MODEL, model, vocab, decided)
                if store:
                    store.remove()


def read_source(params: Params, vocab: Vocab) -> ModelFile | None:
    """The model file that `init` names, None if it names none. Raises ChargptError if it does not fit the corpus."""
    if params.init == "scratch":
        return None
    if params.init != "migrated":
        return read_model(INIT)
    migrated = read_model(MIGRATED)
    if migrated.vocab != vocab:
        raise ChargptError(
            f"{VOCAB}: the corpus has other characters than the migrated model; set corpus to the text that the legacy"
            " model was trained on"
        )
    return migrated
