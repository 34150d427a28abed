from __future__ import annotations

import itertools

import pytest
import torch

from chargpt.device import pick_device, pick_dtype
from chargpt.errors import ChargptError


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
    for unit, here, amd in itertools.product(("amx_bf16", "avx512_bf16"), (True, False), (True, False)):
        expected = torch.bfloat16 if here and (amd or unit == "amx_bf16") else torch.float32
        monkeypatch.setattr("chargpt.device._from_amd", lambda amd=amd: amd)
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
