"""Vectors of 64 signed bytes for kernels, written as LLVM IR that any target can lower.

Numba vectorises plain loops, but not the saturating byte arithmetic of a min-sum decoder.  These
intrinsics emit `<64 x i8>` operations and LLVM's generic saturation, minimum and maximum; the code
generator splits them into SSE, AVX2, AVX-512 or NEON instructions.  No name of a target appears.

The functions exist inside kernels only.  Offsets are counted in bytes from the start of a C-ordered
int8 array, and are *not* checked: the callers size their scratch so that whole vectors fit.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic, models, register_model

LANES = 64
# Cap of a normalised message; why so low is told in `radio.coding.ldpc`.
MESSAGE_MAX = 31

_I8 = ir.IntType(8)
_I64 = ir.IntType(64)
_V64 = ir.VectorType(_I8, LANES)
_M64 = ir.VectorType(ir.IntType(1), LANES)


class _Int8x64Type(types.Type):
    """The Numba type of one vector of 64 int8 lanes."""

    def __init__(self) -> None:
        super().__init__(name="int8x64")


int8x64 = _Int8x64Type()


@register_model(_Int8x64Type)
class _Int8x64Model(models.PrimitiveModel):
    """Holds the vector as one LLVM value, so that it lives in registers."""

    def __init__(self, manager: Any, frontend_type: Any) -> None:
        super().__init__(manager, frontend_type, _V64)


def _constant(value: int) -> ir.Constant:
    return ir.Constant(_V64, [value] * LANES)


def _call(builder: Any, name: str, *arguments: Any) -> Any:
    """Call the LLVM intrinsic `llvm.<name>.v64i8` on vectors."""
    function_type = ir.FunctionType(_V64, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.{name}.v64i8")
    return builder.call(function, arguments)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    """Return the address of a vector `offset` bytes into an array."""
    data = context.make_array(array_type)(context, builder, array).data
    address = builder.gep(builder.bitcast(data, _I8.as_pointer()), [offset])
    return builder.bitcast(address, _V64.as_pointer())


def _is_bytes(array: Any) -> bool:
    return isinstance(array, types.Array) and array.layout == "C" and array.dtype in (types.int8, types.uint8)


@intrinsic
def load(typing_context: Any, array: Any, offset: Any) -> Any:
    """Load 64 lanes from `array` at any byte offset."""
    if not _is_bytes(array):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], arguments[0], arguments[1])
        return builder.load(pointer, align=1)

    return int8x64(array, types.intp), generate


@intrinsic
def store(typing_context: Any, array: Any, offset: Any, vector: Any) -> Any:
    """Store 64 lanes into `array` at any byte offset."""
    if not _is_bytes(array):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], arguments[0], arguments[1])
        builder.store(arguments[2], pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, int8x64), generate


@intrinsic
def fetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Return `array[index]` of an int32 array as int64, for an index that is never negative.

    Numba's own indexing tests each index for a Python-style negative one, which in the inner loops
    costs more than the arithmetic.
    """
    if not (isinstance(array, types.Array) and array.layout == "C" and array.dtype == types.int32):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.sext(builder.load(builder.gep(data, [arguments[1]])), _I64)

    return types.int64(array, types.intp), generate


@intrinsic
def fetch_word(typing_context: Any, array: Any, offset: Any) -> Any:
    """Return the 8 bytes of a uint8 array from `offset` on as a uint64, the first one lowest."""
    if not _is_bytes(array):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.gep(builder.bitcast(data, _I8.as_pointer()), [arguments[1]])
        return builder.load(builder.bitcast(address, _I64.as_pointer()), align=1)

    return types.uint64(array, types.intp), generate


@intrinsic
def broadcast(typing_context: Any, value: Any) -> Any:
    """Return a vector whose every lane is the low byte of the integer `value`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lane = builder.trunc(arguments[0], _I8)
        vector = builder.insert_element(ir.Constant(_V64, ir.Undefined), lane, ir.Constant(_I64, 0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return builder.shuffle_vector(vector, ir.Constant(_V64, ir.Undefined), mask)

    return int8x64(types.int64), generate


def _binary(name: str) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, name, *arguments)

    return int8x64(int8x64, int8x64), generate


@intrinsic
def add_saturating(typing_context: Any, left: Any, right: Any) -> Any:
    """Return `clip(left + right, -128, 127)` lane by lane."""
    return _binary("sadd.sat")


@intrinsic
def subtract_saturating(typing_context: Any, left: Any, right: Any) -> Any:
    """Return `clip(left - right, -128, 127)` lane by lane."""
    return _binary("ssub.sat")


@intrinsic
def minimum_unsigned(typing_context: Any, left: Any, right: Any) -> Any:
    """Return the smaller of two lanes read as 0..255."""
    return _binary("umin")


@intrinsic
def maximum_unsigned(typing_context: Any, left: Any, right: Any) -> Any:
    """Return the larger of two lanes read as 0..255."""
    return _binary("umax")


@intrinsic
def exclusive_or(typing_context: Any, left: Any, right: Any) -> Any:
    """Return the bitwise exclusive or."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.xor(*arguments)

    return int8x64(int8x64, int8x64), generate


@intrinsic
def magnitude(typing_context: Any, vector: Any) -> Any:
    """Return the magnitude of each signed lane, as unsigned 0..128."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function_type = ir.FunctionType(_V64, [_V64, ir.IntType(1)])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.abs.v64i8")
        return builder.call(function, [arguments[0], ir.Constant(ir.IntType(1), 0)])

    return int8x64(int8x64), generate


@intrinsic
def normalise(typing_context: Any, vector: Any) -> Any:
    """Return `min(m - ((m + 2) >> 2), MESSAGE_MAX)` of unsigned lanes m: 0.75, rounded, capped."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = arguments[0]
        quarter = builder.lshr(builder.add(value, _constant(2)), _constant(2))
        return _call(builder, "umin", builder.sub(value, quarter), _constant(MESSAGE_MAX))

    return int8x64(int8x64), generate


@intrinsic
def select_equal(typing_context: Any, left: Any, right: Any, if_equal: Any, otherwise: Any) -> Any:
    """Return `if_equal` where `left == right`, else `otherwise`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.icmp_unsigned("==", arguments[0], arguments[1]), *arguments[2:])

    return int8x64(int8x64, int8x64, int8x64, int8x64), generate


@intrinsic
def negate_where_negative(typing_context: Any, sign: Any, vector: Any) -> Any:
    """Return `-vector` where the lane of `sign` is negative, else `vector`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        negative = builder.sext(builder.icmp_signed("<", arguments[0], _constant(0)), _V64)
        return builder.sub(builder.xor(arguments[1], negative), negative)

    return int8x64(int8x64, int8x64), generate


@intrinsic
def sign_bits(typing_context: Any, vector: Any) -> Any:
    """Return a uint64 whose bit n is set where lane n is negative."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.icmp_signed("<", arguments[0], _constant(0)), _I64)

    return types.uint64(int8x64), generate
