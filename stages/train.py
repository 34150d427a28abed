"""Train the model on the tokens, from scratch or from the migrated model. An interrupted run continues."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from chargpt.device import pick_device, share_cores
from chargpt.errors import ChargptError
from chargpt.evaluation.curve import Curve
from chargpt.model.file import load_model, save_model
from chargpt.paths import CURVE, MIGRATED, MODEL, TOKENS, VOCAB
from chargpt.text.tokens import read_tokens
from chargpt.text.vocab import Vocab
from chargpt.training.checkpoint import State
from chargpt.training.inputs import check_unchanged, code_files, environment_inputs, read_inputs, training_values
from chargpt.training.loop import train
from chargpt.training.monitor import Surroundings
from chargpt.training.processes import World
from chargpt.training.start import continued_model, new_model

if TYPE_CHECKING:
    from chargpt.model.gpt import GPT
    from chargpt.params import Params


def main(params: Params, surroundings: Surroundings | None = None) -> None:
    """Train, and write the model and its curve. surroundings: progress, saved state and a way to stop, if given."""
    around = surroundings or Surroundings()
    with World(pick_device(params.device), around.place) as world:
        if world.size == 1:
            share_cores(around.runs_here, around.monitor.say)
        data = [VOCAB, TOKENS, *([MIGRATED] if params.init == "migrated" else [])]
        files = code_files(__file__) | {name: Path(name) for name in data}
        inputs = read_inputs(training_values(params) | environment_inputs(params, world), files)
        vocab = Vocab.load(VOCAB)
        train_ids, val_ids = read_tokens(TOKENS, vocab)
        model = starting_model(params, vocab)
        state = None
        if around.state_root:
            say, every = around.monitor.say, around.save_every_s
            state = State(around.state_root, inputs, save_every_s=every, fresh=around.fresh, say=say)
        with state.locked() if state and world.rank == 0 else nullcontext(), Curve(CURVE) as curve:
            world.wait()  # until process 0 has the lock
            model = train(
                model, train_ids, val_ids, params, curve.add, state=state, world=world, monitor=around.monitor
            )
            if world.rank == 0:
                now = around.reread() if around.reread else params
                check_unchanged(inputs, read_inputs(training_values(now) | environment_inputs(now, world), files))
                save_model(MODEL, model, vocab, training_values(params))
                if state:
                    state.clear()


def starting_model(params: Params, vocab: Vocab) -> GPT:
    """The model to train. Raises ChargptError if the migrated one does not fit the corpus or params.yaml."""
    if params.init != "migrated":
        return new_model(params, len(vocab))
    migrated, known = load_model(MIGRATED)
    if known != vocab:
        raise ChargptError(
            f"{VOCAB}: the corpus has other characters than the migrated model knows; set corpus to the text that"
            " the legacy model was trained on"
        )
    return continued_model(migrated, params)


if __name__ == "__main__":
    raise SystemExit("error: type: python -m stages train")
