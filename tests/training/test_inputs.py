from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from chargpt.errors import ChargptError
from chargpt.params import Params
from chargpt.project.params_file import load_params
from chargpt.training.events import Rank
from chargpt.training.inputs import check_unchanged, read_inputs, training_values
from chargpt.training.processes import ProcessGroup
from tests.conftest import write_params
from tests.pipeline import ROOT

CPU = torch.device("cpu")


def test_inputs_are_parameters_environment_and_files(tmp_path: Path) -> None:
    params = load_params(write_params(tmp_path / "params.yaml", dtype="bfloat16"))
    file = tmp_path / "x"
    file.write_text("a")
    inputs = read_inputs(params, ProcessGroup(CPU, Rank(1, 2)), {"data/x": file})
    assert inputs == {f"parameter {key}": inputs[f"parameter {key}"] for key in training_values(params)} | {
        "torch": torch.__version__,
        "processes": "2",
        "computed on": "cpu in torch.bfloat16",
        "data/x": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
    }
    assert (inputs["parameter max_iters"], inputs["parameter optimizer"]) == ("10", '"muon"')
    file.unlink()
    assert read_inputs(params, ProcessGroup(CPU), {"data/x": file})["data/x"] == "missing"


def test_the_message_names_what_changed() -> None:
    before = {"parameter lr": "0.1", "data/x": "1", "torch": "2"}
    check_unchanged(before, dict(before))
    with pytest.raises(
        ChargptError, match=r"^changed while training ran: data/x, parameter lr; dvc\.lock would describe"
    ):
        check_unchanged(before, {"parameter lr": "0.2", "data/x": "2", "torch": "2"})
    for fewer, more in (({}, {"a": "1"}), ({"a": "1"}, {})):
        with pytest.raises(ChargptError, match=r"^changed while training ran: a; .*run again"):
            check_unchanged(fewer, more)


def test_the_training_keys_are_the_params_of_the_train_stage(toy_params: Params) -> None:
    """But for how the processes are started, which dvc.yaml lists so that a change of it runs the stage."""
    stage = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["train"]
    values = training_values(toy_params)
    assert values.keys() == set(stage["params"]) - {"launch"}
    assert values == {key: getattr(toy_params, key) for key in values}
