"""Vectors of eight float32 for kernels, written as LLVM IR that any target can lower.

The sisters of `radio.coding.vectors`: a transform's butterflies read and write a dozen places of one
array, and no compiler can prove for a plain loop that they do not overlap.  The code generator splits
or joins the vectors as the processor has registers; no name of a target appears.

The functions exist inside kernels only.  Offsets count float32 elements from an array's first, a
complex64 being two, and are *not* checked.  Products may be fused with the sum that takes them.
"""

from __future__ import annotations

import operator
from typing import Any, ClassVar

from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic, lower_builtin, models, register_model
from numba.core.typing import signature
from numba.core.typing.templates import ConcreteTemplate, infer_global

WIDTH = 8

_F32 = ir.FloatType()
_I32 = ir.IntType(32)
_V8 = ir.VectorType(_F32, WIDTH)
_V16 = ir.VectorType(_F32, 2 * WIDTH)
_FUSED = ("contract",)


class _Float32x8Type(types.Type):
    """The Numba type of one vector of eight float32."""

    def __init__(self) -> None:
        super().__init__(name="float32x8")


float32x8 = _Float32x8Type()
_Pair: Any = types.containers.UniTuple(float32x8, 2)


@register_model(_Float32x8Type)
class _Float32x8Model(models.PrimitiveModel):
    """Holds the vector as one LLVM value, so that it lives in registers."""

    def __init__(self, manager: Any, frontend_type: Any) -> None:
        super().__init__(manager, frontend_type, _V8)


def _address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any, vector: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    address = builder.gep(builder.bitcast(data, _F32.as_pointer()), [offset])
    return builder.bitcast(address, vector.as_pointer())


def _shuffle(builder: Any, left: Any, right: Any, lanes: list[int]) -> Any:
    mask = ir.Constant(ir.VectorType(_I32, len(lanes)), lanes)
    return builder.shuffle_vector(left, right, mask)


def _is_float(array: Any) -> bool:
    return isinstance(array, types.Array) and array.dtype in (types.float32, types.complex64)


@intrinsic
def load(typing_context: Any, array: Any, offset: Any) -> Any:
    """Load eight neighbours."""
    if not _is_float(array):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, offset = arguments
        address = _address(context, builder, signature.args[0], array, offset, _V8)
        return builder.load(address, align=4)

    return float32x8(array, types.intp), generate


@intrinsic
def store(typing_context: Any, array: Any, offset: Any, vector: Any) -> Any:
    """Store eight neighbours."""
    if not _is_float(array):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, offset, vector = arguments
        address = _address(context, builder, signature.args[0], array, offset, _V8)
        builder.store(vector, address, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, float32x8), generate


@intrinsic
def load_pairs(typing_context: Any, array: Any, offset: Any) -> Any:
    """Load sixteen neighbours and return those at even and at odd places."""
    if not _is_float(array):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, offset = arguments
        address = _address(context, builder, signature.args[0], array, offset, _V16)
        both = builder.load(address, align=4)
        parts = [_shuffle(builder, both, both, list(range(first, 2 * WIDTH, 2))) for first in range(2)]
        return context.make_tuple(builder, signature.return_type, parts)

    return _Pair(array, types.intp), generate


@intrinsic
def store_pairs(typing_context: Any, array: Any, offset: Any, even: Any, odd: Any) -> Any:
    """Store sixteen neighbours, given those at even and at odd places."""
    if not _is_float(array):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, offset, even, odd = arguments
        address = _address(context, builder, signature.args[0], array, offset, _V16)
        lanes = [lane + WIDTH * part for lane in range(WIDTH) for part in range(2)]
        builder.store(_shuffle(builder, even, odd, lanes), address, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, float32x8, float32x8), generate


@intrinsic
def broadcast(typing_context: Any, value: Any) -> Any:
    """Return a vector whose every lane is `value`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = builder.insert_element(ir.Constant(_V8, ir.Undefined), arguments[0], ir.Constant(_I32, 0))
        return _shuffle(builder, vector, ir.Constant(_V8, ir.Undefined), [0] * WIDTH)

    return float32x8(types.float32), generate


@intrinsic
def transpose(typing_context: Any, source: Any, rows: Any, first_row: Any, column: Any, target: Any) -> Any:
    """Write eight columns of eight rows as neighbours: target[8 c + r] = source[rows[first_row + r] + column + c].

    `rows` is an int64 array.
    """
    if not (_is_float(source) and _is_float(target) and isinstance(rows, types.Array)):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source_array, row_array, first, column_offset, target_array = arguments
        starts = context.make_array(signature.args[1])(context, builder, row_array).data
        vectors = []
        for row in range(WIDTH):
            index = builder.add(first, ir.Constant(first.type, row))
            offset = builder.add(builder.load(builder.gep(starts, [index])), column_offset)
            address = _address(context, builder, signature.args[0], source_array, offset, _V8)
            vectors.append(builder.load(address, align=4))
        # Three rounds of interleaving row r with row r + 4 are a transposition.
        for _ in range(3):
            mixed = []
            for row in range(WIDTH // 2):
                pair = vectors[row], vectors[row + WIDTH // 2]
                mixed.append(_shuffle(builder, *pair, [0, 8, 1, 9, 2, 10, 3, 11]))
                mixed.append(_shuffle(builder, *pair, [4, 12, 5, 13, 6, 14, 7, 15]))
            vectors = mixed
        for row, vector in enumerate(vectors):
            offset = ir.Constant(column_offset.type, WIDTH * row)
            address = _address(context, builder, signature.args[4], target_array, offset, _V8)
            builder.store(vector, address, align=4)
        return context.get_dummy_value()

    return types.void(source, rows, types.intp, types.intp, target), generate


def _register_operator(function: Any, name: str) -> None:
    """Make a Python operator on two vectors the LLVM instruction `name`."""

    @infer_global(function)
    class _Operator(ConcreteTemplate):
        cases: ClassVar[list[Any]] = [signature(float32x8, float32x8, float32x8)]

    @lower_builtin(function, float32x8, float32x8)
    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return getattr(builder, name)(*arguments, flags=_FUSED)


_register_operator(operator.add, "fadd")
_register_operator(operator.sub, "fsub")
_register_operator(operator.mul, "fmul")
