"""Read characters and choose the next one on a processor: the arithmetic of `model.py` as loops, compiled by Numba.

For one character of a small model, calling a library for each operation takes longer than the arithmetic. Compiled
together, all operations of many characters are one call. Tests compare the result with `model.py`.

Shapes in comments: R texts times positions, K and N widths of a matrix, B texts, S new positions, L n_layer,
T block_size, and the letters of `model.py`. A row's result does not depend on the other rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chargpt.compiled import compiled, inlined, inlined_in_order
from chargpt.config import GPTConfig

f32 = np.float32
Floats = NDArray[np.float32]
ALIGNED = 32  # numbers; a multiple of what a vector register holds


class Weights(NamedTuple):
    """The weights of a model in float32, those of all layers together. Matrices are transposed: (inputs, outputs)."""

    wte: Floats  # (V, C)
    wpe: Floats  # (T, C)
    ln_1: Floats  # (L, 2, C): weight and bias; ln_2 and ln_f likewise
    c_attn: Floats  # (L, C, 3C); its queries contain the attention scale
    attn_proj: Floats  # (L, C, C)
    attn_bias: Floats  # (L, C)
    ln_2: Floats
    c_fc: Floats  # (L, C, 4C)
    fc_bias: Floats  # (L, 4C)
    mlp_proj: Floats  # (L, 4C, C)
    mlp_bias: Floats  # (L, C)
    ln_f: Floats  # (2, C)
    lm_head: Floats  # (C, V)
    head_bias: Floats  # (V,)


def aligned(*shape: int) -> Floats:
    """Zeros that begin at a multiple of 64 bytes: from elsewhere, reading a vector register takes twice as long."""
    size = 4 * math.prod(shape)
    room = np.zeros(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(f32).reshape(shape)


def prepare(config: GPTConfig, weights: Mapping[str, Floats]) -> Weights:
    """A copy of a model's weights. weights: by their names in `GPT`, float32."""

    def copy(values: Floats) -> Floats:
        made = aligned(*values.shape)
        made[...] = values
        return made

    def matrix(name: str) -> Floats:
        return weights[f"{name}.weight"].T

    def norm(name: str) -> Floats:
        return np.stack([weights[f"{name}.weight"], weights[f"{name}.bias"]])

    def each(part: Callable[[str], Floats], name: str) -> Floats:
        return np.stack([part(f"h.{layer}.{name}") for layer in range(config.n_layer)])

    c_attn = each(matrix, "attn.c_attn")
    c_attn[:, :, : config.n_embd] *= f32(config.scale)
    parts = Weights(
        wte=weights["wte.weight"],
        wpe=weights["wpe.weight"],
        ln_1=each(norm, "ln_1"),
        c_attn=c_attn,
        attn_proj=each(matrix, "attn.c_proj"),
        attn_bias=each(weights.__getitem__, "attn.c_proj.bias"),
        ln_2=each(norm, "ln_2"),
        c_fc=each(matrix, "mlp.c_fc"),
        fc_bias=each(weights.__getitem__, "mlp.c_fc.bias"),
        mlp_proj=each(matrix, "mlp.c_proj"),
        mlp_bias=each(weights.__getitem__, "mlp.c_proj.bias"),
        ln_f=norm("ln_f"),
        lm_head=matrix("lm_head"),
        head_bias=weights["lm_head.bias"],
    )
    return Weights(*map(copy, parts))


@inlined
def exp(x: Any) -> Any:
    """e ** x for x <= 0, within 3e-7 of the result: 2 ** n times a polynomial in the rest."""
    x = max(x, f32(-87))  # e ** -87 is close to the smallest float32
    n = np.int32(x * f32(1 / math.log(2)) - f32(0.5))
    rest = x - f32(n) * f32(0.693359375) + f32(n) * f32(2.12194440e-4)  # the two add up to n ln(2), more exactly
    power = f32(1) + rest * (
        f32(1)
        + rest * (f32(1 / 2) + rest * (f32(1 / 6) + rest * (f32(1 / 24) + rest * (f32(1 / 120) + rest / f32(720)))))
    )
    return power * np.int32((n + np.int32(127)) << np.int32(23)).view(np.float32)


@inlined
def gelu(row: Any) -> None:
    """x times the normal distribution's share below x, in place, within 3e-7 |x|.

    Source of the polynomial: Abramowitz and Stegun 1964, 7.1.26.
    """
    for i in range(row.shape[0]):
        size = abs(row[i])
        z = size * f32(math.sqrt(0.5))
        t = f32(1) / (f32(1) + f32(0.3275911) * z)
        above = (
            t
            * f32(0.5)
            * (
                f32(0.254829592)
                + t * (f32(-0.284496736) + t * (f32(1.421413741) + t * (f32(-1.453152027) + t * f32(1.061405429))))
            )
        )
        row[i] = max(row[i], f32(0)) - size * above * exp(-z * z)


@inlined
def fill(y: Any, bias: Any) -> None:
    """Every row of y (R, N) becomes bias (N,)."""
    for r in range(y.shape[0]):
        for n in range(y.shape[1]):
            y[r, n] = bias[n]


@inlined
def add(y: Any, bias: Any) -> None:
    """Add bias (N,) to every row of y (R, N)."""
    for r in range(y.shape[0]):
        for n in range(y.shape[1]):
            y[r, n] += bias[n]


@inlined_in_order
def add_product(x: Any, w: Any, y: Any) -> None:
    """y (R, N) += x (R, K) @ w (K, N), four rows of w and two of x at a time: what is read once is used often."""
    R, K = x.shape
    N = w.shape[1]
    for k in range(0, K - 3, 4):
        w0, w1, w2, w3 = w[k], w[k + 1], w[k + 2], w[k + 3]
        for r in range(0, R - 1, 2):
            x0, x1, x2, x3 = x[r, k], x[r, k + 1], x[r, k + 2], x[r, k + 3]
            z0, z1, z2, z3 = x[r + 1, k], x[r + 1, k + 1], x[r + 1, k + 2], x[r + 1, k + 3]
            to, beside = y[r], y[r + 1]
            for n in range(N):
                a0, a1, a2, a3, old = w0[n], w1[n], w2[n], w3[n], beside[n]  # before a write to y, which may be w
                to[n] = to[n] + x0 * a0 + x1 * a1 + x2 * a2 + x3 * a3
                beside[n] = old + z0 * a0 + z1 * a1 + z2 * a2 + z3 * a3
        if R % 2:
            x0, x1, x2, x3 = x[R - 1, k], x[R - 1, k + 1], x[R - 1, k + 2], x[R - 1, k + 3]
            to = y[R - 1]
            for n in range(N):
                to[n] = to[n] + x0 * w0[n] + x1 * w1[n] + x2 * w2[n] + x3 * w3[n]
    for k in range(K - K % 4, K):
        for r in range(R):
            for n in range(N):
                y[r, n] += x[r, k] * w[k, n]


@inlined
def layer_norm(x: Any, weight: Any, y: Any) -> None:
    """y (R, C): x (R, C) normalised, times weight[0] plus weight[1]."""
    C = x.shape[1]
    for r in range(x.shape[0]):
        mean = f32(0)
        for i in range(C):
            mean += x[r, i]
        mean /= f32(C)
        variance = f32(0)
        for i in range(C):
            variance += (x[r, i] - mean) * (x[r, i] - mean)
        factor = f32(1) / np.sqrt(variance / f32(C) + f32(1e-5))
        for i in range(C):
            y[r, i] = (x[r, i] - mean) * factor * weight[0, i] + weight[1, i]


@inlined
def attention(qkv: Any, keys: Any, values: Any, start: Any, y: Any) -> None:
    """Causal attention of the new positions start .. start + S - 1: qkv (B S, 3C) to y (B S, C).

    keys and values (B, nh, hs, T) of the positions before, of any finite value behind; those of the new ones are added.
    """
    B, nh, hs, T = keys.shape
    C = nh * hs
    S = qkv.shape[0] // B
    scores = np.empty(T, f32)
    for r in range(B * S):
        t = start + r % S
        # A loop over a multiple of the vector registers has no slow rest. Positions after t get the weight 0.
        end = min(T, t + ALIGNED - t % ALIGNED)
        weights = scores[:end]
        for h in range(nh):
            k, v = keys[r // S, h], values[r // S, h]
            q, to = qkv[r, h * hs : (h + 1) * hs], y[r, h * hs : (h + 1) * hs]
            for d in range(hs):
                k[d, t] = qkv[r, C + h * hs + d]
                v[d, t] = qkv[r, 2 * C + h * hs + d]
            for i in range(end):
                weights[i] = f32(0)
            for d in range(0, hs - 3, 4):
                k0, k1, k2, k3 = k[d], k[d + 1], k[d + 2], k[d + 3]
                q0, q1, q2, q3 = q[d], q[d + 1], q[d + 2], q[d + 3]
                for i in range(end):
                    weights[i] += q0 * k0[i] + q1 * k1[i] + q2 * k2[i] + q3 * k3[i]
            for d in range(hs - hs % 4, hs):
                for i in range(end):
                    weights[i] += q[d] * k[d, i]
            best, total = weights[0], f32(0)
            for i in range(t + 1):
                best = max(best, weights[i])
            for i in range(end):
                weights[i] = exp(weights[i] - best) if i <= t else f32(0)
                total += weights[i]
            for d in range(0, hs - 3, 4):
                v0, v1, v2, v3 = v[d], v[d + 1], v[d + 2], v[d + 3]
                y0, y1, y2, y3 = f32(0), f32(0), f32(0), f32(0)
                for i in range(end):
                    y0 += weights[i] * v0[i]
                    y1 += weights[i] * v1[i]
                    y2 += weights[i] * v2[i]
                    y3 += weights[i] * v3[i]
                to[d], to[d + 1], to[d + 2], to[d + 3] = y0 / total, y1 / total, y2 / total, y3 / total
            for d in range(hs - hs % 4, hs):
                y0 = f32(0)
                for i in range(end):
                    y0 += weights[i] * v[d, i]
                to[d] = y0 / total


@inlined
def read(w: Any, relu: Any, keys: Any, values: Any, idx: Any, start: Any, logits: Any) -> None:
    """Read idx (B, S) at positions start, start + 1, ...; logits (B, V) become those of the next character.

    keys and values (L, B, nh, hs, T): of the positions before; those of idx are added.
    """
    B, S = idx.shape
    L, C, _ = w.c_attn.shape
    x, normed, y = np.empty((B * S, C), f32), np.empty((B * S, C), f32), np.empty((B * S, C), f32)
    qkv, hidden = np.empty((B * S, 3 * C), f32), np.empty((B * S, 4 * C), f32)
    for r in range(B * S):
        for i in range(C):
            x[r, i] = w.wte[idx[r // S, r % S], i] + w.wpe[start + r % S, i]
    for layer in range(L):
        layer_norm(x, w.ln_1[layer], normed)
        for r in range(B * S):
            for i in range(3 * C):
                qkv[r, i] = f32(0)
        add_product(normed, w.c_attn[layer], qkv)
        attention(qkv, keys[layer], values[layer], start, y)
        add(x, w.attn_bias[layer])
        add_product(y, w.attn_proj[layer], x)
        layer_norm(x, w.ln_2[layer], normed)
        fill(hidden, w.fc_bias[layer])
        add_product(normed, w.c_fc[layer], hidden)
        for r in range(B * S):
            if relu:
                for i in range(4 * C):
                    hidden[r, i] = max(hidden[r, i], f32(0))
            else:
                gelu(hidden[r])
        add(x, w.mlp_bias[layer])
        add_product(hidden, w.mlp_proj[layer], x)
    for b in range(B):
        for i in range(C):
            x[b, i] = x[b * S + S - 1, i]
    layer_norm(x[:B], w.ln_f, normed[:B])
    fill(logits, w.head_bias)
    add_product(normed[:B], w.lm_head, logits)


@inlined
def keep_likeliest(logits: Any, probs: Any, most: Any, enough: Any) -> Any:
    """Of probs (V,), keep those of the largest logits (V,): `most`, or as few as add up to `enough`. Others become 0.

    Of equal logits, those of lower ids are kept. Returns the sum of those kept.
    """
    total, kept = 0.0, 0
    while kept < most and total < enough:
        best = -1
        for i in range(probs.shape[0]):
            if probs[i] > 0 and (best < 0 or logits[i] > logits[best]):
                best = i
        if best < 0:  # every possible id is kept
            break
        total += probs[best]
        probs[best] = -probs[best]  # kept
        kept += 1
    for i in range(probs.shape[0]):
        probs[i] = max(-probs[i], 0.0)
    return total


@inlined
def draw(logits: Any, uniform: Any, temperature: Any, top_k: Any, top_p: Any, chosen: Any) -> None:
    """Draw one id per row from the model's probabilities, by inverting their cumulative sum.

    logits: (B, V) floats. uniform: (B,) random numbers in [0, 1). chosen: (B,) int64, is set; -1 where a logit is not
    finite.
    temperature: divides the logits; 0 takes the likeliest id. top_k: draw from the k likeliest ids only (of equally
    likely ids, the lower ones); V for all. top_p: draw only from the likeliest ids, as few as add up to a probability
    of top_p (source: Holtzman et al. 2020); above 1 for all.
    """
    B, V = logits.shape
    probs = np.empty(V)
    for b in range(B):
        best, finite = 0, True
        for i in range(V):
            finite = finite and math.isfinite(logits[b, i])
            if logits[b, i] > logits[b, best]:
                best = i
        chosen[b] = best if finite else -1
        if temperature > 0 and finite:
            total = 0.0
            for i in range(V):
                # a logit that overflows is so far below the largest that its id is impossible: e ** -inf is 0
                probs[i] = math.exp((np.float64(logits[b, i]) - np.float64(logits[b, best])) / temperature)
                total += probs[i]
            if top_k < V:
                total = keep_likeliest(logits[b], probs, top_k, np.inf)
            if top_p <= 1:
                total = keep_likeliest(logits[b], probs, V, top_p * total)
            sum_so_far = 0.0
            for i in range(V):
                sum_so_far += probs[i]
                if probs[i] > 0 and sum_so_far > uniform[b] * total:
                    chosen[b] = i
                    break


@compiled
def choose(logits: Any, uniform: Any, temperature: Any, top_k: Any, top_p: Any) -> Any:
    """The choices of `draw`, (B,) int64, for callers in Python."""
    chosen = np.empty(logits.shape[0], np.int64)
    draw(logits, uniform, temperature, top_k, top_p, chosen)
    return chosen


@compiled
def extend(
    w: Any,
    relu: Any,
    keys: Any,
    values: Any,
    unread: Any,
    start: Any,
    uniform: Any,
    temperature: Any,
    top_k: Any,
    top_p: Any,
) -> Any:
    """Read unread (B, S) at positions start, ...; then choose a character and read it, for each row of uniform (n, B).

    The last choice is not read. Returns the choices, (n, B) int64. The other arguments are those of `read` and `draw`.
    """
    n, B = uniform.shape
    chosen = np.empty((n, B), np.int64)
    logits = np.empty((B, w.head_bias.shape[0]), f32)
    idx, one = unread, np.empty((B, 1), np.int64)
    for step in range(n):
        read(w, relu, keys, values, idx, start, logits)
        start += idx.shape[1]
        draw(logits, uniform[step], temperature, top_k, top_p, chosen[step])
        idx = one
        for b in range(B):
            one[b, 0] = chosen[step, b]
    return chosen
