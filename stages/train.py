"""Train the model on the tokens, from scratch or from the migrated model; continues after an interruption."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from chargpt.errors import ChargptError
from stages import run

if TYPE_CHECKING:
    from chargpt.params import Params

VOCAB, TOKENS, MIGRATED = "artifacts/vocab.json", "data/tokens.safetensors", "artifacts/migrated.safetensors"
CURVE = "metrics/curves.tsv"


def main(params: Params) -> None:
    if params.launch != "python" and "TORCHELASTIC_RUN_ID" not in os.environ:
        from chargpt.device import launch

        return launch(params.launch.split()[1:], "stages.train")
    from chargpt.stops import Stops

    stops = Stops()
    from chargpt.checkpoint import load_model, save_model
    from chargpt.data import read_tokens
    from chargpt.device import World, pick_device
    from chargpt.params import load_params
    from chargpt.resume import State, check_unchanged, code_files, read_inputs, share_threads
    from chargpt.training import TRAINING_KEYS, Curve, continued_model, new_model, settings, train
    from chargpt.vocab import Vocab

    with World(pick_device(params.device)) as world:
        if world.size == 1:
            share_threads()
        data = [Path(VOCAB), Path(TOKENS), *([Path(MIGRATED)] if params.init == "migrated" else [])]
        files = [*code_files(), *data]
        inputs = read_inputs(params.model_dump(include=TRAINING_KEYS) | settings(params, world), files)
        vocab = Vocab.load(VOCAB)
        train_ids, val_ids = read_tokens(TOKENS, vocab)
        if params.init == "migrated":
            migrated, known = load_model(MIGRATED)
            if known != vocab:
                raise ChargptError(f"{VOCAB}: the corpus has other characters than the migrated model knows")
            model = continued_model(migrated, params)
        else:
            model = new_model(params, len(vocab))
        state = State(inputs)
        with state.locked() if world.rank == 0 else nullcontext(), Curve(CURVE) as curve:
            world.wait()  # for the lock
            model = train(model, train_ids, val_ids, params, curve.add, state=state, world=world, stops=stops)
            if world.rank == 0:
                now = load_params().model_dump(include=TRAINING_KEYS) | settings(params, world)
                check_unchanged(inputs, read_inputs(now, files))
                save_model("artifacts/model.safetensors", model, vocab, params.model_dump(include=TRAINING_KEYS))
                state.clear()


if __name__ == "__main__":
    run(main)
