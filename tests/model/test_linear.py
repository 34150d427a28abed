from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from chargpt.model import linear
from chargpt.model.linear import ROWS, Linear, product

needs_onednn = pytest.mark.skipif(not linear.HAS_ONEDNN, reason="torch has no oneDNN for this CPU")


def gradients(layer: nn.Linear, x: Tensor) -> list[Tensor]:
    """The result, and the gradients of the input and of each parameter."""
    x = x.clone().requires_grad_()
    y = layer(x)
    inputs = [x, *layer.parameters()]
    return [y.detach(), *torch.autograd.grad((y * y.detach().cos()).sum(), inputs)]


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("features", "out"), [(8, 24), (24, 8), (16, 16)])
def test_results_and_gradients_equal_torchs(features: int, out: int, bias: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = Linear(features, out, bias=bias), nn.Linear(features, out, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, ROWS, features)
    for found, expected in zip(gradients(ours, x), gradients(theirs, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    ours.weight.requires_grad_(False)
    x.requires_grad_()
    ours(x).sum().backward()
    assert ours.weight.grad is None and x.grad is not None
    torch.testing.assert_close(x.grad, theirs.weight.sum(0).expand_as(x), rtol=1e-5, atol=1e-5)


@needs_onednn
def test_onednn_is_used_for_large_float32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 from ROWS rows on; not in float64, under autocast, or where torch has no oneDNN."""
    calls = []

    def counted(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        calls.append(x.shape)
        return product(x, w, bias)

    monkeypatch.setattr(linear, "product", counted)
    layer = Linear(8, 8)
    layer(torch.randn(ROWS, 8))
    assert len(calls) == 1
    layer(torch.randn(ROWS - 1, 8))
    layer.double()(torch.randn(ROWS, 8).double())
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(ROWS, 8)).dtype == torch.bfloat16
    monkeypatch.setattr(linear, "HAS_ONEDNN", False)
    layer(torch.randn(ROWS, 8))
    assert len(calls) == 1
