"""The linear layer, computed with oneDNN where that is faster.

On an x86 CPU, torch multiplies float32 matrices with MKL, which does not use AVX-512 on AMD CPUs. oneDNN, which is part
of torch too, does: there it is twice as fast. On CPUs with AVX2 only it is one tenth faster.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ROWS = 64  # for fewer, MKL needs less preparation
HAS_ONEDNN = torch.backends.mkldnn.is_available() and platform.machine().lower() in ("x86_64", "amd64")


class Linear(nn.Linear):
    """nn.Linear with another choice of kernel: the same parameters, and the same result to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features). Returns (..., out_features)."""
        if (
            not HAS_ONEDNN
            or x.device.type != "cpu"
            or x.dtype != torch.float32
            or x.numel() < ROWS * self.in_features
            or torch.is_autocast_enabled("cpu")
            or torch.compiler.is_compiling()
        ):
            return super().forward(x)
        return _OneDNN.apply(x, self.weight, self.bias)


def product(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ w.T + bias by oneDNN. x: (..., m), w: (n, m), bias: (n,); all float32 on a CPU. Returns (..., n)."""
    return torch.ops.mkldnn._linear_pointwise(x, w, bias, "none", [], "")


class _OneDNN(torch.autograd.Function):
    """x @ w.T + bias and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, w)
        return product(x, w, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, w = ctx.saved_tensors
        needs_x, needs_w, needs_bias = ctx.needs_input_grad
        grad_x = product(grad, w.T) if needs_x else None
        rows, grad = x.flatten(0, -2), grad.flatten(0, -2)
        grad_w = None
        if needs_w:  # oneDNN copies the transposed first factor: make it the smaller one
            wide = w.size(0) > w.size(1)
            grad_w = product(rows.T, grad.T).T if wide else product(grad.T, rows.T)
        return grad_x, grad_w, grad.sum(0) if needs_bias else None
