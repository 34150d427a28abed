"""Rows times a matrix in the CPU's vector registers, for functions that Numba compiles.

A loop over single numbers keeps its sums in memory, and is half as fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 32  # numbers in a vector: two registers of AVX-512, four of AVX2
# Rows that one call of `add_rows` takes: their sums fill most registers, and share what is read of the matrix.
GROUP = 6 if binding.get_host_cpu_features().get("avx512f") else 2
_LAYOUT = ir.VectorType(ir.FloatType(), LANES)
_ZEROS = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
_UNKNOWN = ir.Constant(_LAYOUT, ir.Undefined)


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def add_rows(typing: Any, count: Any, x: Any, part: Any, y: Any) -> tuple[Any, Callable[..., Any]]:
    """The first `LANES` columns of y (count, N) += x (count, K or more) @ part (K, LANES), all float32.

    count: a constant. Behind each row of y, `LANES` numbers must be in memory. A sum is computed in the order of K,
    rounded once for each product where the CPU has such an instruction, whatever count is.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args[1:]
        x, part, y = (context.make_array(k)(context, builder, a) for k, a in zip(kinds, arguments[1:], strict=True))
        first = ir.Constant(part.nitems.type, 0)

        def place(kind: Any, array: Any, row: Any, column: Any) -> Any:
            row = ir.Constant(first.type, row) if isinstance(row, int) else row
            return cgutils.get_item_pointer(context, builder, kind, array, [row, column])

        def vector(kind: Any, array: Any, row: Any) -> Any:
            return builder.bitcast(place(kind, array, row, first), _LAYOUT.as_pointer())

        rows = range(count.literal_value)
        sums = [cgutils.alloca_once(builder, _LAYOUT) for _ in rows]
        for i in rows:
            builder.store(builder.load(vector(kinds[2], y, i), align=4), sums[i])
        with cgutils.for_range(builder, builder.extract_value(part.shape, 0)) as loop:
            values = builder.load(vector(kinds[1], part, loop.index), align=4)
            for i in rows:
                number = builder.load(place(kinds[0], x, i, loop.index))
                alone = builder.insert_element(_UNKNOWN, number, ir.Constant(ir.IntType(32), 0))
                copies = builder.shuffle_vector(alone, _UNKNOWN, _ZEROS)
                product = builder.fmul(copies, values, flags=("contract",))
                builder.store(builder.fadd(builder.load(sums[i]), product, flags=("contract",)), sums[i])
        for i in rows:
            builder.store(builder.load(sums[i]), vector(kinds[2], y, i), align=4)
        return context.get_dummy_value()

    return types.void(count, x, part, y), emit
