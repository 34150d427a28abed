"""Vectors of floats that stay in the CPU's registers, for functions that Numba compiles.

A loop over single numbers keeps its sums in memory, and is half as fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

LANES = 32  # numbers in a vector: two or four registers of today's CPUs
_LAYOUT = ir.VectorType(ir.FloatType(), LANES)
_ZEROS = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
_UNKNOWN = ir.Constant(_LAYOUT, ir.Undefined)
Generator = tuple[Any, Callable[..., Any]]  # the types of result and arguments, and what emits the instructions


class Vector(types.Type):  # type: ignore[misc]
    """The type of `LANES` float32."""

    def __init__(self) -> None:
        super().__init__(name=f"float32 x {LANES}")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    """A vector is one value of the machine."""

    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _LAYOUT)


vector = Vector()


def _place(context: Any, builder: Any, kind: Any, row: Any) -> Any:
    return builder.bitcast(context.make_array(kind)(context, builder, row).data, _LAYOUT.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def load(typing: Any, row: Any) -> Generator:
    """The first `LANES` numbers of row, (N,) float32, whatever N is: there must be as many in memory."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        read = builder.load(_place(context, builder, signature.args[0], arguments[0]))
        read.align = 4
        return read

    return vector(row), emit


@intrinsic  # type: ignore[untyped-decorator]
def store(typing: Any, values: Any, row: Any) -> Generator:
    """The first `LANES` numbers of row, (N,) float32, become values."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[0], _place(context, builder, signature.args[1], arguments[1])).align = 4
        return context.get_dummy_value()

    return types.void(vector, row), emit


@intrinsic  # type: ignore[untyped-decorator]
def add_multiple(typing: Any, to: Any, number: Any, values: Any) -> Generator:
    """to + number * values, rounded once where the CPU has such an instruction."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first = builder.insert_element(_UNKNOWN, arguments[1], ir.Constant(ir.IntType(32), 0))
        copies = builder.shuffle_vector(first, _UNKNOWN, _ZEROS)
        product = builder.fmul(copies, arguments[2], flags=("contract",))
        return builder.fadd(arguments[0], product, flags=("contract",))

    return vector(vector, types.float32, vector), emit
