from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from chargpt.app.params_file import load_params
from chargpt.training.optimizers import Muon, make_optimizers, orthogonalize
from chargpt.training.start import new_model
from tests.conftest import write_params

MATRICES = {f"h.0.{m}.weight" for m in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 32, 8), (2, 8, 32)])
def test_orthogonalize_keeps_directions_and_evens_their_strength(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape) @ torch.diag(torch.logspace(0, -1, shape[-1]))
    result = orthogonalize(matrices)
    U, _, Vh = torch.linalg.svd(matrices, full_matrices=False)
    inner = U.mT @ result @ Vh.mT  # the result in the matrix's own directions: close to the identity
    off_diagonal = inner - torch.diag_embed(inner.diagonal(dim1=1, dim2=2))
    assert off_diagonal.abs().max() < 1e-4
    assert inner.diagonal(dim1=1, dim2=2).min() > 0.5
    assert inner.diagonal(dim1=1, dim2=2).max() < 1.3


def test_orthogonalize_in_bfloat16_is_near() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(4, 32, 128)
    low = orthogonalize(matrices.to(torch.bfloat16)).to(torch.float32)
    assert (low - orthogonalize(matrices)).abs().mean() < 0.05 * low.abs().mean()


def test_a_batch_is_its_matrices_one_by_one() -> None:
    torch.manual_seed(0)
    first, second = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(6, 8))
    alone = nn.Parameter(first.detach().clone())
    for p in (first, second, alone):
        p.grad = p.detach().sin()
    together, single = Muon([first, second], 0.1, weight_decay=0.1), Muon([alone], 0.1, weight_decay=0.1)
    for _ in range(3):
        together.step()
        single.step()
    torch.testing.assert_close(first, alone, rtol=0, atol=1e-5)


def test_fused_queries_keys_values_are_three_matrices() -> None:
    torch.manual_seed(0)
    fused = nn.Parameter(torch.zeros(24, 8))
    parts = [nn.Parameter(torch.zeros(8, 8)) for _ in range(3)]
    fused.grad = torch.randn(24, 8)
    for part, grad in zip(parts, fused.grad.split(8), strict=True):
        part.grad = grad
    Muon([fused], 0.1).step()
    Muon(parts, 0.1).step()
    torch.testing.assert_close(fused.data, torch.cat([p.data for p in parts]), rtol=0, atol=1e-5)


def test_updates_have_the_size_of_adamws() -> None:
    """Root mean square 0.2, AdamW's usual size, whatever the gradient's scale."""
    torch.manual_seed(0)
    for scale in (1e-6, 1.0, 1e6):
        p = nn.Parameter(torch.zeros(32, 128))
        p.grad = scale * torch.randn(32, 128)
        Muon([p], lr=1.0).step()
        assert p.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_parameter_once_and_decay_on_matrices_only(tmp_path: Path, optimizer: str) -> None:
    params = load_params(write_params(tmp_path / "params.yaml", optimizer=optimizer))
    model = new_model(params, 11)
    names = {id(p): name for name, p in model.named_parameters()}
    optimizers = make_optimizers(model, params, torch.float32)
    groups = [group for o in optimizers for group in o.param_groups]
    listed = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(names.values())
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == MATRICES | {"lm_head.weight"}
    if optimizer == "muon":
        assert {names[id(p)] for p in optimizers[0].param_groups[0]["params"]} == MATRICES
    assert len(optimizers) == (2 if optimizer == "muon" else 1)
