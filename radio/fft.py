"""Unitary FFTs of many short rows, single precision, for the power-of-two sizes of OFDM.

Decimation in frequency over vectors of eight neighbours, real and imaginary parts apart in scratch that
stays in the first-level cache.  With N = F x 16, F a product of eights and fours:

1. One pass per factor r of F turns rows of L into r rows of L / r in place,
   z_k[p] = w_L^(pk) sum_j x[p + j L/r] w_r^(jk), w_n = exp(-2 pi j / n).  L / r is 16 or more, so the
   lanes of a vector are neighbouring p.
2. F rows of 16 are left, row by row the frequencies f + F q of one residue f.  Eight rows at a time are
   transposed, in the order of f, and transformed with lanes of neighbouring f: what comes out lies in
   natural order.

The inverse is the forward transform with real and imaginary parts exchanged at both ends.  Other sizes
go to `scipy.fft`, to which the tests hold these kernels as well.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from radio import simd
from radio.jit import kernel, register_warmup

MIN_SIZE = 128
MAX_SIZE = 8192  # scratch of 64 KiB; beyond it the passes would leave the cache
_LAST = 16  # length of the rows that are transposed
_WIDTH = simd.WIDTH
_HALF_ROOT = np.float32(np.sqrt(0.5))


class _Plan(NamedTuple):
    """Tables of one size.

    Attributes
    ----------
    radices, pass_start
        int64 [num_passes]: factor of each pass, and where its twiddles start.
    twiddle_real, twiddle_imaginary
        float32: per pass [radix, L / radix], w_L^(pk).
    last_real, last_imaginary
        float32 [16]: w_16^(jk) at 4 k + j.
    rows
        int64 [F]: where the row of each residue f starts.
    """

    size: int
    scale: np.float32
    radices: NDArray[np.int64]
    pass_start: NDArray[np.int64]
    twiddle_real: NDArray[np.float32]
    twiddle_imaginary: NDArray[np.float32]
    last_real: NDArray[np.float32]
    last_imaginary: NDArray[np.float32]
    rows: NDArray[np.int64]


def has_kernel(size: int) -> bool:
    """Whether a size is transformed here and not by scipy."""
    return MIN_SIZE <= size <= MAX_SIZE and size & (size - 1) == 0


@functools.lru_cache(maxsize=16)
def _plan(size: int) -> _Plan:
    exponent = (size // _LAST).bit_length() - 1
    # Eights as far as possible; a remainder of one is made up by two fours.
    num_fours = (-exponent % 3) if exponent % 3 != 1 else 2
    radices = [8] * ((exponent - 2 * num_fours) // 3) + [4] * num_fours
    twiddles, starts, length = [], [0], size
    row_of_frequency = np.zeros(1, np.int64)
    for radix in radices:
        k, p = np.arange(radix)[:, None], np.arange(length // radix)
        twiddles.append(np.exp(-2j * np.pi * k * p / length).reshape(-1))
        starts.append(starts[-1] + length)
        # Row (row, k) of the next pass holds the frequencies of row, plus k times the rows so far.
        row_of_frequency = (row_of_frequency * radix + np.arange(radix)[:, None]).reshape(-1)
        length //= radix
    flat = np.concatenate(twiddles)
    last = np.exp(-2j * np.pi * np.outer(np.arange(4), np.arange(4)) / _LAST).reshape(-1)

    def part(values: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.ascontiguousarray(values, np.float32)

    return _Plan(
        size,
        np.float32(1 / np.sqrt(size)),
        np.array(radices, np.int64),
        np.array(starts[:-1], np.int64),
        part(flat.real),
        part(flat.imag),
        part(last.real),
        part(last.imag),
        row_of_frequency * _LAST,
    )


@kernel
def _four(ar, ai, br, bi, cr, ci, dr, di):  # type: ignore[no-untyped-def]
    """Return the transform of four complex vectors."""
    sr, si, tr, ti = ar + cr, ai + ci, ar - cr, ai - ci
    ur, ui, vr, vi = br + dr, bi + di, br - dr, bi - di
    return sr + ur, si + ui, tr + vi, ti - vr, sr - ur, si - ui, tr - vi, ti + vr


@kernel
def _put(real, imaginary, place, ar, ai, twiddle_real, twiddle_imaginary, at):  # type: ignore[no-untyped-def]
    """Store a times the twiddles at `at`."""
    wr, wi = simd.load(twiddle_real, at), simd.load(twiddle_imaginary, at)
    simd.store(real, place, ar * wr - ai * wi)
    simd.store(imaginary, place, ar * wi + ai * wr)


@kernel
def _pass_four(  # type: ignore[no-untyped-def]
    source, x, is_first, inverse, real, imaginary, start, length, twiddle_real, twiddle_imaginary, first
):
    """Turn the row at `start` into four, in place; the first pass reads the complex source from `x` on."""
    m = length // 4
    for p in range(0, m, _WIDTH):
        at = start + p
        if is_first:
            ar, ai = simd.load_pairs(source, x + 2 * p)
            br, bi = simd.load_pairs(source, x + 2 * p + 2 * m)
            cr, ci = simd.load_pairs(source, x + 2 * p + 4 * m)
            dr, di = simd.load_pairs(source, x + 2 * p + 6 * m)
            if inverse:
                ar, ai, br, bi, cr, ci, dr, di = ai, ar, bi, br, ci, cr, di, dr
        else:
            ar, ai = simd.load(real, at), simd.load(imaginary, at)
            br, bi = simd.load(real, at + m), simd.load(imaginary, at + m)
            cr, ci = simd.load(real, at + 2 * m), simd.load(imaginary, at + 2 * m)
            dr, di = simd.load(real, at + 3 * m), simd.load(imaginary, at + 3 * m)
        ar, ai, br, bi, cr, ci, dr, di = _four(ar, ai, br, bi, cr, ci, dr, di)
        simd.store(real, at, ar)
        simd.store(imaginary, at, ai)
        w = first + m + p
        _put(real, imaginary, at + m, br, bi, twiddle_real, twiddle_imaginary, w)
        _put(real, imaginary, at + 2 * m, cr, ci, twiddle_real, twiddle_imaginary, w + m)
        _put(real, imaginary, at + 3 * m, dr, di, twiddle_real, twiddle_imaginary, w + 2 * m)


@kernel
def _pass_eight(  # type: ignore[no-untyped-def]
    source, x, is_first, inverse, real, imaginary, start, length, twiddle_real, twiddle_imaginary, first
):
    """Turn the row at `start` into eight, in place; the first pass reads the complex source from `x` on."""
    m = length // 8
    half_root = simd.broadcast(_HALF_ROOT)
    for p in range(0, m, _WIDTH):
        at = start + p
        if is_first:
            y = x + 2 * p
            ar, ai = simd.load_pairs(source, y)
            br, bi = simd.load_pairs(source, y + 2 * m)
            cr, ci = simd.load_pairs(source, y + 4 * m)
            dr, di = simd.load_pairs(source, y + 6 * m)
            er, ei = simd.load_pairs(source, y + 8 * m)
            fr, fi = simd.load_pairs(source, y + 10 * m)
            gr, gi = simd.load_pairs(source, y + 12 * m)
            hr, hi = simd.load_pairs(source, y + 14 * m)
            if inverse:
                ar, ai, br, bi, cr, ci, dr, di = ai, ar, bi, br, ci, cr, di, dr
                er, ei, fr, fi, gr, gi, hr, hi = ei, er, fi, fr, gi, gr, hi, hr
        else:
            ar, ai = simd.load(real, at), simd.load(imaginary, at)
            br, bi = simd.load(real, at + m), simd.load(imaginary, at + m)
            cr, ci = simd.load(real, at + 2 * m), simd.load(imaginary, at + 2 * m)
            dr, di = simd.load(real, at + 3 * m), simd.load(imaginary, at + 3 * m)
            er, ei = simd.load(real, at + 4 * m), simd.load(imaginary, at + 4 * m)
            fr, fi = simd.load(real, at + 5 * m), simd.load(imaginary, at + 5 * m)
            gr, gi = simd.load(real, at + 6 * m), simd.load(imaginary, at + 6 * m)
            hr, hi = simd.load(real, at + 7 * m), simd.load(imaginary, at + 7 * m)
        ar, ai, cr, ci, er, ei, gr, gi = _four(ar, ai, cr, ci, er, ei, gr, gi)
        br, bi, dr, di, fr, fi, hr, hi = _four(br, bi, dr, di, fr, fi, hr, hi)
        # The odd half is turned by w_8^k: (1 - j) / sqrt 2, -j, -(1 + j) / sqrt 2.
        dr, di = (dr + di) * half_root, (di - dr) * half_root
        fr, fi = fi, fr
        hr, hi = (hi - hr) * half_root, (hi + hr) * half_root
        simd.store(real, at, ar + br)
        simd.store(imaginary, at, ai + bi)
        w = first + m + p
        _put(real, imaginary, at + m, cr + dr, ci + di, twiddle_real, twiddle_imaginary, w)
        _put(real, imaginary, at + 2 * m, er + fr, ei - fi, twiddle_real, twiddle_imaginary, w + m)
        _put(real, imaginary, at + 3 * m, gr + hr, gi - hi, twiddle_real, twiddle_imaginary, w + 2 * m)
        _put(real, imaginary, at + 4 * m, ar - br, ai - bi, twiddle_real, twiddle_imaginary, w + 3 * m)
        _put(real, imaginary, at + 5 * m, cr - dr, ci - di, twiddle_real, twiddle_imaginary, w + 4 * m)
        _put(real, imaginary, at + 6 * m, er - fr, ei + fi, twiddle_real, twiddle_imaginary, w + 5 * m)
        _put(real, imaginary, at + 7 * m, gr - hr, gi + hi, twiddle_real, twiddle_imaginary, w + 6 * m)


@kernel
def _last_rows(plan, inverse, real, imaginary, turned_real, turned_imaginary, target, target_start):  # type: ignore[no-untyped-def]
    """Transform the rows of 16, eight at a time, and write them in natural order."""
    num_rows = plan.rows.shape[0]
    scale = simd.broadcast(plan.scale)
    last_real, last_imaginary, rows = plan.last_real, plan.last_imaginary, plan.rows
    low_real, low_imaginary = turned_real[: 8 * _WIDTH], turned_imaginary[: 8 * _WIDTH]
    high_real, high_imaginary = turned_real[8 * _WIDTH :], turned_imaginary[8 * _WIDTH :]
    for f in range(0, num_rows, _WIDTH):
        simd.transpose(real, rows, f, 0, low_real)
        simd.transpose(real, rows, f, 8, high_real)
        simd.transpose(imaginary, rows, f, 0, low_imaginary)
        simd.transpose(imaginary, rows, f, 8, high_imaginary)
        for j in range(4):
            at = j * _WIDTH
            q = 4 * _WIDTH
            ar, ai = simd.load(turned_real, at), simd.load(turned_imaginary, at)
            br, bi = simd.load(turned_real, at + q), simd.load(turned_imaginary, at + q)
            cr, ci = simd.load(turned_real, at + 2 * q), simd.load(turned_imaginary, at + 2 * q)
            dr, di = simd.load(turned_real, at + 3 * q), simd.load(turned_imaginary, at + 3 * q)
            ar, ai, br, bi, cr, ci, dr, di = _four(ar, ai, br, bi, cr, ci, dr, di)
            simd.store(turned_real, at, ar)
            simd.store(turned_imaginary, at, ai)
            wr, wi = simd.broadcast(last_real[4 + j]), simd.broadcast(last_imaginary[4 + j])
            simd.store(turned_real, at + q, br * wr - bi * wi)
            simd.store(turned_imaginary, at + q, br * wi + bi * wr)
            wr, wi = simd.broadcast(last_real[8 + j]), simd.broadcast(last_imaginary[8 + j])
            simd.store(turned_real, at + 2 * q, cr * wr - ci * wi)
            simd.store(turned_imaginary, at + 2 * q, cr * wi + ci * wr)
            wr, wi = simd.broadcast(last_real[12 + j]), simd.broadcast(last_imaginary[12 + j])
            simd.store(turned_real, at + 3 * q, dr * wr - di * wi)
            simd.store(turned_imaginary, at + 3 * q, dr * wi + di * wr)
        for k in range(4):
            at = 4 * k * _WIDTH
            ar, ai = simd.load(turned_real, at), simd.load(turned_imaginary, at)
            br, bi = simd.load(turned_real, at + _WIDTH), simd.load(turned_imaginary, at + _WIDTH)
            cr, ci = simd.load(turned_real, at + 2 * _WIDTH), simd.load(turned_imaginary, at + 2 * _WIDTH)
            dr, di = simd.load(turned_real, at + 3 * _WIDTH), simd.load(turned_imaginary, at + 3 * _WIDTH)
            ar, ai, br, bi, cr, ci, dr, di = _four(ar, ai, br, bi, cr, ci, dr, di)
            if inverse:
                ar, ai, br, bi, cr, ci, dr, di = ai, ar, bi, br, ci, cr, di, dr
            y = target_start + 2 * (f + k * num_rows)
            q = 8 * num_rows
            simd.store_pairs(target, y, ar * scale, ai * scale)
            simd.store_pairs(target, y + q, br * scale, bi * scale)
            simd.store_pairs(target, y + 2 * q, cr * scale, ci * scale)
            simd.store_pairs(target, y + 3 * q, dr * scale, di * scale)


@kernel
def _transform(plan, inverse, source, source_stride, target, target_stride, prefix):  # type: ignore[no-untyped-def]
    """Transform the rows of `source` into `target`, each behind a copy of its last `prefix` elements.

    Strides count complex elements, from row to row.
    """
    size = plan.size
    # A cache line more keeps equal places of the two apart modulo the page: stores to one would hold up
    # loads of the other.
    scratch = np.empty(2 * size, np.float32)
    real, imaginary = scratch[:size], scratch[size:]
    turned_real = np.empty(_LAST * _WIDTH, np.float32)
    turned_imaginary = np.empty(_LAST * _WIDTH, np.float32)
    radices, pass_start = plan.radices, plan.pass_start
    tr, ti = plan.twiddle_real, plan.twiddle_imaginary
    for row in range(source.shape[0]):
        x = 2 * row * source_stride
        length = size
        for index in range(radices.shape[0]):
            first = pass_start[index]
            for start in range(0, size, length):
                if radices[index] == 8:
                    _pass_eight(source, x, index == 0, inverse, real, imaginary, start, length, tr, ti, first)
                else:
                    _pass_four(source, x, index == 0, inverse, real, imaginary, start, length, tr, ti, first)
            length //= radices[index]
        begin = row * target_stride
        _last_rows(
            plan, inverse, real, imaginary, turned_real, turned_imaginary, target, 2 * (begin + prefix)
        )
        target[begin : begin + prefix] = target[begin + size : begin + size + prefix]


def _rows(source: NDArray[np.complex64]) -> tuple[NDArray[np.complex64], int]:
    """The array itself and its row stride, or a copy where the elements of a row are no neighbours."""
    step = source.dtype.itemsize
    rows = source.astype(np.complex64, copy=False)
    if rows.shape[0] and (rows.strides[1] != step or rows.strides[0] % step or not rows.flags.writeable):
        rows = rows.copy()
    return rows, rows.strides[0] // step


def forward(rows: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Return the unitary discrete Fourier transform of each row, 1/sqrt(N) sum x e^(-2 pi j n k / N).

    Parameters
    ----------
    rows
        complex64 [num_rows, N]; rows may lie apart, elements of a row are best neighbours.

    Returns
    -------
    complex64 [num_rows, N]
        DC first.
    """
    size = rows.shape[1]
    if not has_kernel(size):
        return np.asarray(scipy.fft.fft(rows, axis=1, norm="ortho"), np.complex64)
    source, stride = _rows(rows)
    out = np.empty((len(rows), size), np.complex64)
    _transform(_plan(size), False, source, stride, out.reshape(-1), size, 0)
    return out


def inverse_with_prefix(rows: NDArray[np.complex64], prefix: int) -> NDArray[np.complex64]:
    """Return the unitary inverse transform of each row, behind a copy of its own end.

    Parameters
    ----------
    rows
        complex64 [num_rows, N], DC first.
    prefix
        Elements that are repeated before each row, 0 to N.

    Returns
    -------
    complex64 [num_rows, prefix + N]
    """
    size = rows.shape[1]
    out = np.empty((len(rows), prefix + size), np.complex64)
    if not has_kernel(size):
        out[:, prefix:] = scipy.fft.ifft(rows, axis=1, norm="ortho")
        out[:, :prefix] = out[:, size:]
        return out
    source, stride = _rows(rows)
    _transform(_plan(size), True, source, stride, out.reshape(-1), prefix + size, prefix)
    return out


@register_warmup
def _warm_up() -> None:
    # Rows that lie apart, as a receiver's symbols between their prefixes, are another type to Numba.
    apart = np.zeros((2, MIN_SIZE + 8), np.complex64)[:, 8:]
    forward(apart)
    forward(apart.copy())
    inverse_with_prefix(apart.copy(), 0)
