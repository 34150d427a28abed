from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from chargpt.project.params_file import load_params
from chargpt.training import optimizers
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


@pytest.mark.parametrize("shape", [(4, 4), (16, 4), (4, 16)])
def test_the_first_update(shape: tuple[int, int]) -> None:
    """Against the gradient, by 0.2 times the root of the longer side and the rate; decay on top."""
    torch.manual_seed(0)
    tall = torch.linalg.qr(torch.randn(max(shape), min(shape)))[0]  # orthogonal already
    gradient = tall if tall.shape == shape else tall.T
    start = torch.randn(shape)
    p = nn.Parameter(start.clone())
    p.grad = 7.0 * gradient
    Muon([p], lr=0.1, weight_decay=0.5).step()
    step = (p.detach() - start * (1 - 0.1 * 0.5)) / (0.1 * 0.2 * max(shape) ** 0.5)
    strength = -(step * gradient).sum() / gradient.square().sum()  # about 1, as far as five iterations get
    assert 0.65 < strength < 1.25
    torch.testing.assert_close(step, -strength * gradient, rtol=0, atol=1e-4)


def test_momentum_remembers_gradients() -> None:
    """The direction after two updates, for gradients along two axes, which orthogonalising keeps apart.

    What is remembered is a moving average from 0, and the update looks ahead (Nesterov): with a momentum of 0.75, of
    the first gradient 0.75 * (0.75 * 0.25) is left, and of the second there is 0.25 + 0.75 * 0.25.
    """
    first, second = torch.zeros(2, 2), torch.zeros(2, 2)
    first[0, 0], second[1, 1] = 1.0, 1.0
    p = nn.Parameter(torch.zeros(2, 2))
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizers, "orthogonalize", lambda pieces: (seen.append(pieces.clone()), pieces)[1])
        muon = Muon([p], lr=1.0, momentum=0.75)
        for p.grad in (first, second):
            muon.step()
    torch.testing.assert_close(seen[0], (0.25 + 0.75 * 0.25) * first[None])
    torch.testing.assert_close(seen[1], (0.75 * 0.75 * 0.25) * first[None] + (0.25 + 0.75 * 0.25) * second[None])


def test_muon_without_options() -> None:
    """0.95 momentum and no decay."""
    group = Muon([nn.Parameter(torch.zeros(2, 2))], 0.1).param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.95, 0.0)


def test_matrices_of_several_shapes() -> None:
    """Each is updated as it would be alone; only queries, keys and values are three times as high as wide."""
    torch.manual_seed(0)
    shapes = [(4, 8), (24, 8), (8, 4), (8, 24), (8, 8), (24, 8)]
    together = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    alone = [nn.Parameter(p.detach().clone()) for p in together]
    for p, q in zip(together, alone, strict=True):
        p.grad = torch.randn(p.shape)
        q.grad = p.grad.clone()
    batched, single = Muon(together, 0.1, weight_decay=0.1), [Muon([q], 0.1, weight_decay=0.1) for q in alone]
    for muon in [batched, *single] * 2:
        muon.step()
    for p, q in zip(together, alone, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_orthogonalize_at_the_limits_of_floats(scale: float) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(1, 4, 4)
    assert orthogonalize(scale * matrices).isfinite().all()
    assert orthogonalize(torch.zeros(1, 4, 4)).abs().max() == 0


def test_orthogonalising_happens_in_the_dtype_and_updates_in_float32() -> None:
    torch.manual_seed(0)
    weights = []
    for dtype in (torch.float32, torch.bfloat16):
        p = nn.Parameter(torch.zeros(8, 32))
        p.grad = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
        Muon([p], 1.0, dtype=dtype).step()
        assert p.dtype == torch.float32
        weights.append(p.detach())
    assert 0 < (weights[0] - weights[1]).abs().max() < 0.05


def test_values_reach_the_optimizers(tmp_path: Path) -> None:
    changes = {"lr": 0.3, "momentum": 0.7, "beta1": 0.8, "beta2": 0.85, "weight_decay": 0.4}
    params = load_params(write_params(tmp_path / "params.yaml", optimizer="muon", **changes))
    muon, adamw = make_optimizers(new_model(params, 11), params, torch.bfloat16)
    assert isinstance(muon, Muon) and muon.dtype == torch.bfloat16
    assert [(g["lr"], g["momentum"], g["weight_decay"]) for g in muon.param_groups] == [(0.3, 0.7, 0.4)]
    assert [(g["lr"], g["betas"], g["weight_decay"]) for g in adamw.param_groups] == [
        (0.3, (0.8, 0.85), 0.4),
        (0.3, (0.8, 0.85), 0.0),
    ]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_parameter_once_and_decay_on_matrices_only(tmp_path: Path, optimizer: str) -> None:
    params = load_params(write_params(tmp_path / "params.yaml", optimizer=optimizer))
    model = new_model(params, 11)
    names = {id(p): name for name, p in model.named_parameters()}
    made = make_optimizers(model, params, torch.float32)
    groups = [group for o in made for group in o.param_groups]
    listed = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(names.values())
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == MATRICES | {"lm_head.weight"}
    if optimizer == "muon":
        assert {names[id(p)] for p in made[0].param_groups[0]["params"]} == MATRICES
    assert len(made) == (2 if optimizer == "muon" else 1)
