"""Optimizers: Muon for the hidden matrices and AdamW for the other parameters, or AdamW for all."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from chargpt.model.gpt import GPT

if TYPE_CHECKING:
    from chargpt.params import Params

# Coefficients of the odd quintic that drives singular values towards 1. Source: KellerJordan/Muon.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
STEPS = 5


class Muon(torch.optim.Optimizer):
    """Gradient descent with momentum that makes the update of each matrix orthogonal.

    An orthogonal update has the same size in all directions of the matrix, so no direction learns at the expense of
    another. matrices: 2-D parameters. weight_decay: decoupled from the gradient. dtype: of the orthogonalisation.
    Matrices of the same shape are orthogonalised in one batch, which on a CPU is many times faster than one after the
    other. The factor 0.2 sqrt(max(rows, columns)) gives the update the size of AdamW's, so that one learning rate suits
    both.
    torch.optim.Muon exists. This one orthogonalises in batches, keeps float32 on CPUs without bfloat16, and treats the
    queries, keys and values of c_attn as three matrices.
    Source: Jordan et al. 2024 (Muon), Liu et al. 2025 (scale and weight decay).
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update every matrix from its gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                by_shape[p.shape].append(p)
            for shape, ps in by_shape.items():
                updates = []
                for p in ps:
                    assert p.grad is not None
                    buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                    buffer.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(buffer, group["momentum"]))  # Nesterov
                step = -group["lr"] * 0.2 * math.sqrt(max(_piece(shape)))
                pieces = torch.stack(updates).view(-1, *_piece(shape)).to(self.dtype)
                orthogonal = orthogonalize(pieces).to(torch.float32).view(-1, *shape)
                for p, update in zip(ps, orthogonal, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=step)


def _piece(shape: torch.Size) -> tuple[int, int]:
    """Rows and columns of each matrix in a parameter, which holds three (queries, keys, values) if it is (3C, C)."""
    rows, columns = shape
    return (columns, columns) if rows == 3 * columns else (rows, columns)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Approximate U V^T for each matrix U S V^T of a batch (n, rows, columns), by Newton-Schulz iteration.

    The iteration starts from singular values of at most 1. The root of the norm of X X^T bounds them more closely than
    the norm of X, so that they end nearer to 1.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.size(-2) > matrices.size(-1)
    X = matrices.mT if tall else matrices
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    A = X @ X.mT
    bound = A.norm(dim=(-2, -1), keepdim=True) + 1e-7
    X, A = X / bound.sqrt(), A / bound
    if X.size(-1) >= 2 * X.size(-2) and X.dtype == torch.float32:
        X = _product_of_polynomials(A) @ X
    else:
        for step in range(STEPS):
            if step:
                A = X @ X.mT
            B = torch.baddbmm(A, A, A, beta=b, alpha=c)
            X = torch.baddbmm(X, B, X, beta=a)
    return X.mT if tall else X


def _product_of_polynomials(A: Tensor) -> Tensor:
    """The matrix by which Newton-Schulz iteration multiplies X in total, from A = X X^T alone.

    Each iteration multiplies X by P = a + b A + c A^2, and so makes P A P of A. For a wide X, this takes half the work.
    It needs float32: rounding in bfloat16 makes small eigenvalues of A negative, and these grow.
    """
    a, b, c = NEWTON_SCHULZ
    factors: list[Tensor] = []
    for step in range(STEPS):
        if step:
            A = factors[-1] @ A @ factors[-1]
        factors.append(torch.baddbmm(A, A, A, beta=b, alpha=c))
        factors[-1].diagonal(dim1=-2, dim2=-1).add_(a)
    return reduce(torch.matmul, reversed(factors))


def make_optimizers(model: GPT, params: Params, dtype: torch.dtype) -> Sequence[torch.optim.Optimizer]:
    """The optimizers that params.optimizer asks for: [Muon, AdamW] or [AdamW].

    Both use the same learning rate, because Muon scales its update to the size of AdamW's. dtype: of Muon's
    matrix products; the weights and the averages of gradients stay float32.
    Weight decay applies to matrices only: embeddings, biases and norms are not decayed.
    """
    hidden = [p for name, p in model.named_parameters() if p.dim() == 2 and name.startswith("h.")]
    embeddings = [model.wte.weight, model.wpe.weight]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    head = [model.lm_head.weight]
    muon = params.optimizer == "muon"
    groups = [
        {"params": head if muon else hidden + head, "weight_decay": params.weight_decay},
        {"params": embeddings + vectors, "weight_decay": 0.0},
    ]
    others = torch.optim.AdamW(groups, params.lr, (params.beta1, params.beta2), fused=True)
    return [Muon(hidden, params.lr, params.momentum, params.weight_decay, dtype), others] if muon else [others]
