"""Read characters and choose the next one on a CPU: the arithmetic of `GPT` as loops, compiled by Numba.

For one character of a small model, calling a library for each operation takes longer than the arithmetic. Compiled
together, all operations of many characters are one call. Tests compare the result with `GPT`.

Shapes in comments: R texts times positions, K and N widths of a matrix, B texts, S new positions, L n_layer,
T block_size, and the letters of `model/gpt.py`. N' is N rounded up to whole vectors, with zeros behind N: a loop over
whole vectors has no slow rest. A matrix (K, N) is kept as (N' / LANES, K, LANES), in the order in which it is read.
A row's result does not depend on the other rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chargpt.inference.compiled import compiled, inlined, inlined_in_order
from chargpt.inference.vectors import GROUP, LANES, add_rows
from chargpt.model.config import GPTConfig

f32 = np.float32
PENDING = -2  # in the place of a choice: a text was read on, and its next character is already there
Floats = NDArray[np.float32]


class Weights(NamedTuple):
    """The weights of a model in float32, those of all layers together. Matrices are from inputs to outputs."""

    wte: Floats  # (V, C')
    wpe: Floats  # (T, C')
    ln_1: Floats  # (L, 2, C): weight and bias; ln_2 and ln_f likewise
    c_attn: Floats  # L matrices (C, 3C); the queries contain the attention scale
    attn_proj: Floats  # L matrices (C, C)
    attn_bias: Floats  # (L, C')
    ln_2: Floats
    c_fc: Floats  # L matrices (C, 4C)
    fc_bias: Floats  # (L, (4C)')
    mlp_proj: Floats  # L matrices (4C, C)
    mlp_bias: Floats  # (L, C')
    ln_f: Floats  # (2, C)
    lm_head: Floats  # a matrix (C, V)
    head_bias: Floats  # (V',)
    relu: bool  # the activation; GELU if it is false


def aligned(*shape: int) -> Floats:
    """Zeros that begin at a multiple of 64 bytes: from elsewhere, reading a vector register takes twice as long."""
    size = 4 * math.prod(shape)
    room = np.zeros(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(f32).reshape(shape)


def wide(values: Floats) -> Floats:
    """values (..., N) as (..., N')."""
    N = values.shape[-1]
    made = aligned(*values.shape[:-1], -(-N // LANES) * LANES)
    made[..., :N] = values
    return made


def packed(values: Floats) -> Floats:
    """Matrices (L, N, K), from outputs to inputs, as (L, N' / LANES, K, LANES)."""
    L, N, K = values.shape
    made = aligned(L, -(-N // LANES), K, LANES)
    for n in range(0, N, LANES):
        made[:, n // LANES, :, : N - n] = values[:, n : n + LANES].swapaxes(1, 2)
    return made


def prepare(config: GPTConfig, weights: Mapping[str, Floats]) -> Weights:
    """A copy of a model's weights. weights: by their names in `GPT`, float32."""

    def each(name: str) -> Floats:
        return np.stack([weights[f"h.{layer}.{name}"] for layer in range(config.n_layer)])

    def norms(name: str) -> Floats:
        return np.stack([each(f"{name}.weight"), each(f"{name}.bias")], axis=1)

    c_attn = each("attn.c_attn.weight")
    c_attn[:, : config.n_embd] *= f32(config.scale)
    return Weights(
        wte=wide(weights["wte.weight"]),
        wpe=wide(weights["wpe.weight"]),
        ln_1=norms("ln_1"),
        c_attn=packed(c_attn),
        attn_proj=packed(each("attn.c_proj.weight")),
        attn_bias=wide(each("attn.c_proj.bias")),
        ln_2=norms("ln_2"),
        c_fc=packed(each("mlp.c_fc.weight")),
        fc_bias=wide(each("mlp.c_fc.bias")),
        mlp_proj=packed(each("mlp.c_proj.weight")),
        mlp_bias=wide(each("mlp.c_proj.bias")),
        ln_f=np.stack([weights["ln_f.weight"], weights["ln_f.bias"]]),
        lm_head=packed(weights["lm_head.weight"][None])[0],
        head_bias=wide(weights["lm_head.bias"]),
        relu=config.activation == "relu",
    )


class Cache(NamedTuple):
    """The keys and values of B texts; behind the positions that have been read, anything."""

    keys: Floats  # for each layer, text and head a matrix (hs, T)
    values: Floats  # for each a matrix (T, hs)


def new_cache(config: GPTConfig, batch_size: int) -> Cache:
    """An empty cache."""
    heads, T, hs = (config.n_layer, batch_size, config.n_head), config.block_size, config.n_embd // config.n_head
    return Cache(aligned(*heads, -(-T // LANES), hs, LANES), aligned(*heads, -(-hs // LANES), T, LANES))


@inlined
def exp(x: Any) -> Any:
    """e ** x for x <= 0, within 3e-7 of the result: 2 ** n times a polynomial in the rest."""
    x = max(x, f32(-87))  # e ** -87 is close to the smallest float32
    n = np.int32(x * f32(1 / math.log(2)) - f32(0.5))
    rest = x - f32(n) * f32(0.693359375) + f32(n) * f32(2.12194440e-4)  # the two add up to n ln(2), more exactly
    higher = f32(1 / 6) + rest * (f32(1 / 24) + rest * (f32(1 / 120) + rest * f32(1 / 720)))
    power = f32(1) + rest * (f32(1) + rest * (f32(1 / 2) + rest * higher))
    return power * np.int32((n + np.int32(127)) << np.int32(23)).view(np.float32)


@inlined
def largest(row: Any) -> Any:
    """The largest number of row (N,), compared as whole numbers in the same order: LLVM makes vectors of these only."""
    bits = row.view(np.int32)
    best = bits[0] ^ ((bits[0] >> np.int32(31)) & np.int32(0x7FFFFFFF))
    for i in range(bits.shape[0]):
        best = max(best, bits[i] ^ ((bits[i] >> np.int32(31)) & np.int32(0x7FFFFFFF)))
    return np.int32(best ^ ((best >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)


@inlined
def gelu(row: Any) -> None:
    """x times the normal distribution's share below x, in place, within 3e-7 |x|.

    Source of the polynomial: Abramowitz and Stegun 1964, 7.1.26.
    """
    for i in range(row.shape[0]):
        size = abs(row[i])
        z = size * f32(math.sqrt(0.5))
        t = f32(1) / (f32(1) + f32(0.3275911) * z)
        higher = f32(1.421413741) + t * (f32(-1.453152027) + t * f32(1.061405429))
        above = t * f32(0.5) * (f32(0.254829592) + t * (f32(-0.284496736) + t * higher))
        row[i] = max(row[i], f32(0)) - size * above * exp(-z * z)


@inlined
def add(y: Any, bias: Any) -> None:
    """Add bias (N,) to every row of y (R, N)."""
    for r in range(y.shape[0]):
        for n in range(y.shape[1]):
            y[r, n] += bias[n]


@inlined_in_order
def add_product(x: Any, w: Any, y: Any) -> None:
    """y (R, N') += x (R, K or more) @ w, a matrix (K, N)."""
    R = x.shape[0]
    for p in range(w.shape[0]):
        r = 0
        while r + GROUP <= R:
            add_rows(GROUP, x[r:], w[p], y[r:, p * LANES :])
            r += GROUP
        while r + 2 <= R:
            add_rows(2, x[r:], w[p], y[r:, p * LANES :])
            r += 2
        if r < R:
            add_rows(1, x[r:], w[p], y[r:, p * LANES :])


@inlined
def layer_norm(x: Any, weight: Any, y: Any) -> None:
    """y (R, C or more): x (R, C or more) normalised, times weight[0] plus weight[1], each (C,)."""
    C = weight.shape[1]
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
def attention(qkv: Any, keys: Any, values: Any, bounds: Any, start: Any, y: Any) -> None:
    """Causal attention of the new positions: qkv (R, (3C)') to y (R, C'). bounds and start: see `transform`.

    keys and values: a layer of a `Cache`; those of the new positions are added.
    """
    _, nh, blocks, hs, _ = keys.shape
    C = nh * hs
    scores, mixed = np.empty((GROUP, blocks * LANES), f32), np.empty((GROUP, values.shape[2] * LANES), f32)
    totals = np.empty(GROUP, f32)
    for b in range(bounds.shape[0] - 1):
        for h in range(nh):
            k, v = keys[b % keys.shape[0], h], values[b % keys.shape[0], h]
            for r in range(bounds[b], bounds[b + 1]):
                t = start[b] + r - bounds[b]
                for d in range(hs):
                    k[t // LANES, d, t % LANES] = qkv[r, C + h * hs + d]
                    v[d // LANES, t, d % LANES] = qkv[r, 2 * C + h * hs + d]
            for first in range(bounds[b], bounds[b + 1], GROUP):
                last = min(first + GROUP, bounds[b + 1])
                seen = start[b] + last - bounds[b]
                end = (seen + LANES - 1) // LANES
                scores[: last - first, : end * LANES] = 0
                add_product(qkv[first:last, h * hs : (h + 1) * hs], k[:end], scores)
                for r in range(first, last):
                    t = start[b] + r - bounds[b]
                    row = scores[r - first, : (t // LANES + 1) * LANES]  # whole vectors: a loop has no slow rest
                    for i in range(t + 1, row.shape[0]):
                        row[i] = row[0]
                    best, total = largest(row), f32(0)
                    for i in range(row.shape[0]):
                        row[i] = exp(row[i] - best) if i <= t else f32(0)
                        total += row[i]
                    totals[r - first] = total
                    scores[r - first, row.shape[0] : seen] = 0
                mixed[:] = 0
                add_product(scores[: last - first], v[:, :seen], mixed)
                for r in range(first, last):
                    for d in range(hs):
                        y[r, h * hs + d] = mixed[r - first, d] / totals[r - first]


@inlined
def transform(w: Any, cache: Any, ids: Any, bounds: Any, start: Any) -> Any:
    """Read texts, and return what the last layer makes of each character, normalised, (R, C') float32.

    ids: (R,) whole numbers, the texts one after another. bounds: (B + 1,), where each begins, and R.
    start: (B,), the position of each text's first character. cache: of the positions before; those of ids are added.
    Of a cache of fewer texts or layers, all use the same part, one after another.
    """
    R = ids.shape[0]
    x = np.empty((R, w.wte.shape[1]), f32)
    normed, y = np.empty_like(x), np.empty_like(x)
    qkv, hidden = np.empty((R, w.c_attn.shape[1] * LANES), f32), np.empty((R, w.fc_bias.shape[1]), f32)
    for b in range(bounds.shape[0] - 1):
        for r in range(bounds[b], bounds[b + 1]):
            x[r] = w.wte[ids[r]] + w.wpe[start[b] + r - bounds[b]]
    for layer in range(w.c_attn.shape[0]):
        layer_norm(x, w.ln_1[layer], normed)
        qkv[:] = 0
        add_product(normed, w.c_attn[layer], qkv)
        part = layer % cache.keys.shape[0]
        attention(qkv, cache.keys[part], cache.values[part], bounds, start, y)
        add(x, w.attn_bias[layer])
        add_product(y, w.attn_proj[layer], x)
        layer_norm(x, w.ln_2[layer], normed)
        hidden[:] = w.fc_bias[layer]
        add_product(normed, w.c_fc[layer], hidden)
        for r in range(R):
            if w.relu:
                for i in range(hidden.shape[1]):
                    hidden[r, i] = max(hidden[r, i], f32(0))
            else:
                gelu(hidden[r])
        add(x, w.mlp_bias[layer])
        add_product(hidden, w.mlp_proj[layer], x)
    layer_norm(x, w.ln_f, normed)
    return normed


@inlined
def read(w: Any, cache: Any, idx: Any, start: Any) -> Any:
    """Read idx (B, S) at positions start (B,), start + 1, ...; return the next character's logits, (B, V).

    cache: of the positions before; those of idx are added.
    """
    B, S = idx.shape
    x = transform(w, cache, idx.reshape(B * S), S * np.arange(B + 1), start)
    logits = np.empty((B, w.head_bias.shape[0]), f32)
    logits[:] = w.head_bias
    add_product(x[S - 1 :: S], w.lm_head, logits)
    return logits[:, : w.wte.shape[0]]


@compiled
def score(w: Any, cache: Any, ids: Any, targets: Any, bounds: Any, start: Any, all_of_them: Any) -> Any:
    """How surprising the targets (R,) are, each after its text up to the character of ids (R,): (R,) float64, nats.

    all_of_them: (R, V) float32, become the log probabilities of all characters; (0, V) if nobody needs them.
    The other arguments are those of `transform`.
    """
    x = transform(w, cache, ids, bounds, np.full(bounds.shape[0] - 1, start))
    nats, logits = np.empty(ids.shape[0]), np.empty((GROUP, w.head_bias.shape[0]), f32)
    for first in range(0, ids.shape[0], GROUP):
        part = x[first : first + GROUP]
        logits[:] = w.head_bias
        add_product(part, w.lm_head, logits)
        for i in range(part.shape[0]):
            row, total = logits[i, : all_of_them.shape[1]], 0.0
            best = largest(row)
            for j in range(row.shape[0]):
                total += exp(row[j] - best)
            sum_of_all = best + math.log(total)
            nats[first + i] = sum_of_all - row[targets[first + i]]
            if all_of_them.shape[0] > 0:
                all_of_them[first + i] = row - sum_of_all
    return nats


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


@compiled
def draw(logits: Any, uniform: Any, choice: Any) -> Any:
    """Draw one id per row from the model's probabilities, by inverting their cumulative sum.

    logits: (B, V) floats. uniform: (B,) random numbers in [0, 1). choice: temperature, which divides the logits, 0
    takes the likeliest id; top_k: draw from the k likeliest ids only (of equally likely ids, the lower ones), V for
    all; top_p: draw only from the likeliest ids, as few as add up to a probability of top_p (source: Holtzman et al.
    2020), 1 for all. Returns (B,) int64, -1 where a logit is not finite.
    """
    temperature, top_k, top_p = choice
    B, V = logits.shape
    probs, chosen = np.empty(V), np.empty(B, np.int64)
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
            if top_p < 1:
                total = keep_likeliest(logits[b], probs, V, top_p * total)
            sum_so_far = 0.0
            for i in range(V):
                sum_so_far += probs[i]
                if probs[i] > 0 and sum_so_far > uniform[b] * total:
                    chosen[b] = i
                    break
    return chosen


@compiled
def extend(w: Any, cache: Any, unread: Any, start: Any, uniform: Any, choice: Any) -> Any:
    """Read unread (B, S) at positions start, ...; then choose a character and read it, for each row of uniform (n, B).

    The last choice is not read. Returns the choices, (n, B) int64. The other arguments are those of `read` and `draw`.
    """
    chosen, place = np.empty(uniform.shape, np.int64), np.full(unread.shape[0], start)
    for step in range(uniform.shape[0]):
        chosen[step] = draw(read(w, cache, unread, place), uniform[step], choice)
        place += unread.shape[1]
        unread = chosen[step].reshape(-1, 1)
    return chosen


@compiled
def write(
    w: Any, cache: Any, texts: Any, given: Any, at: Any, prompt: Any, end: Any, kept: Any, uniform: Any, choice: Any
) -> Any:
    """Read a character of each text and, where it was the last one, choose the next: for each row of uniform (n, B).

    texts: (B, T) int64, the contexts; of each, `given` (B,) characters are there and `at` (B,) are read. All three are
    changed. A text that ends with `end` (E,) becomes `prompt` (P,), unread. Of a context that is full, the last `kept`
    characters are read again, the new one included. Returns the choices, (n, B) int64, PENDING where what was given was
    read. The other arguments are those of `read` and `draw`.
    """
    n, B = uniform.shape
    chosen, idx = np.empty((n, B), np.int64), np.empty((B, 1), np.int64)
    for step in range(n):
        for b in range(B):
            idx[b, 0] = texts[b, at[b]]
        chosen[step] = draw(read(w, cache, idx, at), uniform[step], choice)
        for b in range(B):
            at[b] += 1
            if at[b] < given[b]:
                chosen[step, b] = PENDING
                continue
            if given[b] == texts.shape[1]:
                given[b], at[b] = kept - 1, 0
                texts[b, : kept - 1] = texts[b, texts.shape[1] - kept + 1 :]
            texts[b, given[b]] = chosen[step, b]
            given[b] += 1
            if given[b] >= end.shape[0] and (texts[b, given[b] - end.shape[0] : given[b]] == end).all():
                texts[b, : prompt.shape[0]] = prompt
                given[b], at[b] = prompt.shape[0], 0
    return chosen
