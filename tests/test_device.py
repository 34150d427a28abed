from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from chargpt.device import pick_device, pick_dtype
from chargpt.errors import ChargptError
from chargpt.evaluation.curve import Row
from chargpt.project.params_file import load_params
from chargpt.training.events import Event
from chargpt.training.loop import Trainer
from chargpt.training.start import new_model
from tests.conftest import write_params
from tests.pipeline import ROOT

IDS = (np.arange(400) ** 2 % 11).astype(np.uint8)


@pytest.mark.parametrize("wrong", ["gpu", "cuda:00", "cuda:\u0661", "cuda:", "cpu\n"])
def test_unknown_devices_are_refused(wrong: str) -> None:
    with pytest.raises(ChargptError) as error:
        pick_device(wrong)
    assert str(error.value) == f"device is {wrong!r}; it must be one of auto, cpu, mps, cuda, cuda:N"


@pytest.mark.parametrize(
    ("cuda", "mps", "found"), [(2, True, "cuda"), (2, False, "cuda"), (0, True, "cpu"), (0, False, "cpu")]
)
def test_auto_is_cuda_or_cpu(cuda: int, mps: bool, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto") == torch.device(found)
    here = {"cpu", *(("cuda", "cuda:0", "cuda:1") if cuda else ()), *(("mps",) if mps else ())}
    for name in ("cpu", "cuda", "cuda:0", "cuda:1", "cuda:2", "mps"):
        if name in here:
            assert pick_device(name) == torch.device(name)
        else:
            with pytest.raises(ChargptError, match=rf"^device {name} is not available here; use auto \(-S device=auto"):
                pick_device(name)


def test_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert pick_dtype("float32", cpu) == torch.float32
    assert pick_dtype("bfloat16", cpu) == torch.bfloat16
    for unit, here in itertools.product(("amx_bf16", "avx512_bf16"), (True, False)):
        expected = torch.bfloat16 if here else torch.float32
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda found=(unit, here): {"avx2": True, found[0]: found[1]}
        )
        assert pick_dtype("auto", cpu) == expected
        assert pick_dtype("float32", cpu) == torch.float32
        assert pick_dtype("auto", torch.device("mps")) == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert pick_dtype("auto", cpu) == torch.float32
    with pytest.raises(ChargptError, match="not supported by mps; use -S dtype=float32"):
        pick_dtype("bfloat16", torch.device("mps"))


def test_dtypes_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each GPU is asked for itself: the first is one of 2017, the second of 2020, the third newer."""
    capabilities = {torch.device("cuda:0"): (7, 5), torch.device("cuda:1"): (8, 0), torch.device("cuda:2"): (9, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    old, *new = capabilities
    for device in new:
        assert pick_dtype("auto", device) == pick_dtype("bfloat16", device) == torch.bfloat16
        assert pick_dtype("float32", device) == torch.float32
    assert pick_dtype("auto", old) == pick_dtype("float32", old) == torch.float32
    with pytest.raises(ChargptError, match=r"^dtype bfloat16 is not supported by cuda:0; use -S dtype=float32"):
        pick_dtype("bfloat16", old)


def curve(tmp_path: Path, **changes: object) -> list[Row]:
    params = load_params(write_params(tmp_path / "params.yaml", max_iters=30, eval_interval=30, **changes))
    events: list[Event] = []
    Trainer(new_model(params, 11), IDS[:300], IDS[300:], params, report=events.append).train()
    return [event for event in events if isinstance(event, Row)]


def test_bfloat16_learns_alike(tmp_path: Path) -> None:
    low, full = curve(tmp_path, dtype="bfloat16"), curve(tmp_path, dtype="float32")
    assert low[-1].val_loss != full[-1].val_loss
    assert low[-1].val_loss == pytest.approx(full[-1].val_loss, abs=0.1)
    assert full[-1].val_loss < full[0].val_loss - 0.1


@pytest.mark.system
def test_compile_without_a_compiler_is_one_line(tmp_path: Path) -> None:
    write_params(tmp_path / "params.yaml", compile=True)
    code = (
        "from chargpt.runtime.exits import one_line_errors\n"
        "from chargpt.project.params_file import load_params\n"
        "from chargpt.training.loop import Trainer\n"
        "from chargpt.training.start import new_model\n"
        "params = load_params()\n"
        "with one_line_errors():\n"
        "    Trainer(new_model(params, 11), range(100), range(100), params)\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "c")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "compile: true does not work here" in lines[0] and "use -S compile=false" in lines[0]
    assert "Traceback" not in done.stderr
