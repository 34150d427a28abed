"""What the -S options of printed commands hold."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import to_hydra_overrides

from chargpt.errors import ChargptError
from chargpt.project.overrides import continue_training, legacy_settings, override

SIZES = {"vocab_size": 65, "n_layer": 2, "dropout": 0.1}


VALUES = [None, True, 2, 1e-5, "it's, \\ [a]", "\\\\'", "end\\", "two\nlines ${a}", "\\n"]


@pytest.mark.filterwarnings("ignore")  # of Hydra's parser
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_dvc_parses_an_override_as_its_value(value: Any) -> None:
    """Text keeps its quotes and backslashes."""
    assert to_hydra_overrides([override("key", value)])[0].value() == value


def test_continue_training_names_what_differs(tmp_path: Path) -> None:
    command = continue_training(SIZES, "auto", Path("old/weights"), Path("data/text.txt"), None)
    sizes = "-S n_layer=2 -S dropout=0.1"
    assert command == f"dvc exp run -S init=migrated -S legacy_dir=old -S corpus=data/text.txt {sizes}"
    config = tmp_path / "config.json"
    config.write_text('{"max_iters": 7, "learning_rate": 0.1}')
    command = continue_training(SIZES, "relu-head", Path("w"), Path("it's, mine.txt"), config)
    assert [word for word in shlex.split(command)[5:] if word != "-S"] == [
        *("legacy_dir=DIRECTORY_OF_WEIGHTS", "corpus='it\\'s, mine.txt'", "dialect=relu-head"),
        *("n_layer=2", "dropout=0.1", "max_iters=7", "lr=0.1", "optimizer=adamw", "warmup_iters=0"),
        *("final_lr_fraction=1.0", "weight_decay=0.01", "beta1=0.9", "beta2=0.999", "grad_clip=0.0"),
    ]


def test_legacy_settings_out_of_range_are_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"n_layer": 2, "learning_rate": 0.1, "max_iters": "many"}')
    with pytest.raises(
        ChargptError, match=r"max_iters is 'many'; it must be a whole number, >= 1, <= 1000000000, or auto$"
    ):
        legacy_settings(config)
