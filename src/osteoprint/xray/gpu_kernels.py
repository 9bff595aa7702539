"""The projector's inner loops in Triton: for CUDA cards, or slowly in Triton's interpreter.

A program takes a tile of pixels through the scan plane by plane, one thread to a ray, as
:mod:`osteoprint.xray.projector` does on a CPU. Importing this module imports triton; only
:mod:`osteoprint.xray.gpu` does so, when an image is asked for.

A *view* is a row of float32, all that a kernel knows of one camera. It begins with five
numbers that change evenly over the image, three coefficients each (at the image's middle,
per row, per column): where the ray meets the scan's middle plane, along a and b and times
``dn``; and the ray's direction ``da``, ``db``, ``dn``. Seen from the middle of the image
and of the scan all are small where it matters, so that float32 is exact enough. Then come
the scan's middle (3), the matrix of dot products of grid steps in mm² (aa, ab, bb, an, bn,
nn), and which of the images is this camera's (exact up to 2²⁴); from ``_TABLE`` on, what
each kernel needs besides.

Cells are (n, a, b) int32: the voxel in the low half, its neighbour at b + 1 in the high one.
"""

from __future__ import annotations

import triton
import triton.language as tl

TILE_ROWS, TILE_COLUMNS = 8, 16
WARPS = 4
_ROWS = tl.constexpr(TILE_ROWS)
_COLUMNS = tl.constexpr(TILE_COLUMNS)
_CENTRE = tl.constexpr(15)
_STEPS = tl.constexpr(18)
_PLACE = tl.constexpr(24)
_TABLE = tl.constexpr(25)
_SLOTS = tl.constexpr(8)
_SPEEDS = tl.constexpr(49)


@triton.jit
def _pixels(columns):  # type: ignore[no-untyped-def]
    """Row and column of each of a tile's pixels; a warp takes 4 x 8, which lie close together."""
    lane = tl.arange(0, _ROWS * _COLUMNS)
    across = tl.cdiv(columns, _COLUMNS)
    warp, lane = lane // 32, lane % 32
    row = (tl.program_id(0) // across) * _ROWS + (warp // 2) * 4 + lane // 8
    column = (tl.program_id(0) % across) * _COLUMNS + (warp % 2) * 8 + lane % 8
    return row, column


@triton.jit
def _at(coefficients, row, column):  # type: ignore[no-untyped-def]
    """One of a view's numbers at a pixel counted from the image's middle."""
    even = tl.load(coefficients)
    return even + tl.load(coefficients + 1) * row + tl.load(coefficients + 2) * column


@triton.jit
def _crossing(offset, slope, middle, limit):  # type: ignore[no-untyped-def]
    """First and last plane, from the middle one, where a ray is within 0 ... limit."""
    # A ray that runs along the planes' axis is inside everywhere or nowhere: either way
    # a tiny slope puts the ends far beyond the scan.
    slope = tl.where(tl.abs(slope) < 1e-9, 1e-9, slope)
    one = -(middle + offset) / slope
    two = (limit - middle - offset) / slope
    return tl.minimum(one, two), tl.maximum(one, two)


@triton.jit
def _planes(view, offset_a, slope_a, offset_b, slope_b, count_a, count_b, count_n):  # type: ignore[no-untyped-def]
    """First and last plane that any ray of the tile meets within the scan's box."""
    near_a, far_a = _crossing(offset_a, slope_a, tl.load(view + _CENTRE), count_a - 1.0)
    near_b, far_b = _crossing(offset_b, slope_b, tl.load(view + _CENTRE + 1), count_b - 1.0)
    middle = tl.load(view + _CENTRE + 2)
    near = tl.maximum(tl.maximum(near_a, near_b) + middle, 0.0)
    far = tl.minimum(tl.minimum(far_a, far_b) + middle, count_n - 1.0)
    # Rays that miss the box, or have no direction to speak of (nan), ask for nothing.
    hit = near <= far
    first = tl.min(tl.where(hit, tl.floor(near), count_n * 1.0))
    last = tl.max(tl.where(hit, tl.ceil(far), -1.0))
    return first.to(tl.int32), last.to(tl.int32)


@triton.jit
def _corners(plane, a, b, middle_a, middle_b, count_b):  # type: ignore[no-untyped-def]
    """The four stored values around (a, b), counted from a plane's middle, and the place between.

    Outside of the scan they are 0, air. No ray can read beyond the memory, whatever it is:
    the border is drawn in by more than rounding can add, and is air anyway.
    """
    inside = (tl.abs(a) < middle_a * 0.999999) & (tl.abs(b) < middle_b * 0.999999)
    a, b = middle_a + a, middle_b + b
    ia, ib = a.to(tl.int32), b.to(tl.int32)
    cell = plane + (ia * count_b + ib)
    near = tl.load(cell, mask=inside, other=0)
    far = tl.load(cell + count_b, mask=inside, other=0)
    v00, v01 = (near & 0xFFFF).to(tl.float32), ((near >> 16) & 0xFFFF).to(tl.float32)
    v10, v11 = (far & 0xFFFF).to(tl.float32), ((far >> 16) & 0xFFFF).to(tl.float32)
    return v00, v01, v10, v11, a - ia.to(tl.float32), b - ib.to(tl.float32)


@triton.jit
def _into(value, view, slot):  # type: ignore[no-untyped-def]
    """How far stored values reach into a slot's range: 0 ... its width."""
    low = tl.load(view + _TABLE + slot)
    width = tl.load(view + _TABLE + _SLOTS + slot)
    return tl.minimum(tl.maximum(value - low, 0.0), width)


@triton.jit
def _length(view, slope_a, slope_b):  # type: ignore[no-untyped-def]
    """mm from one plane to the next, and its change with the slopes along a and b."""
    aa, ab, bb = tl.load(view + _STEPS), tl.load(view + _STEPS + 1), tl.load(view + _STEPS + 2)
    an, bn, nn = tl.load(view + _STEPS + 3), tl.load(view + _STEPS + 4), tl.load(view + _STEPS + 5)
    by_a = aa * slope_a + ab * slope_b + an
    by_b = ab * slope_a + bb * slope_b + bn
    step = tl.sqrt(by_a * slope_a + by_b * slope_b + an * slope_a + bn * slope_b + nn)
    return step, by_a / step, by_b / step


@triton.jit
def _put(out, material, here, beyond, step, view, mask):  # type: ignore[no-untyped-def]
    """A material's mm: what reaches into its range, less what goes on into the next one's."""
    weight = tl.load(view + _TABLE + 2 * _SLOTS + material)
    less = tl.load(view + _TABLE + 3 * _SLOTS + material)
    tl.store(out, (here * weight + beyond * less) * step, mask=mask)


@triton.jit
def lengths_kernel(  # type: ignore[no-untyped-def]
    cells, views, out, rows, columns, count_a, count_b, count_n, VIEW: tl.constexpr,
    MATERIALS: tl.constexpr,
):  # fmt: skip
    """Fill (M, rows, columns) at each view's place in ``out`` with mm of each material.

    A view's table: where the slots' ranges begin, their widths, and the weights of
    :func:`_put` for its own slot and the next, eight numbers each.
    """
    view = views + tl.program_id(1) * VIEW
    row, column = _pixels(columns)
    r, c = row - (rows - 1) * 0.5, column - (columns - 1) * 0.5
    per_dn = 1.0 / _at(view + 12, r, c)
    offset_a, offset_b = _at(view, r, c) * per_dn, _at(view + 3, r, c) * per_dn
    slope_a, slope_b = _at(view + 6, r, c) * per_dn, _at(view + 9, r, c) * per_dn
    first, last = _planes(view, offset_a, slope_a, offset_b, slope_b, count_a, count_b, count_n)
    middle_a, middle_b = tl.load(view + _CENTRE), tl.load(view + _CENTRE + 1)
    middle_n = tl.load(view + _CENTRE + 2)
    # A scan may have more cells than 32 bits count; a plane may not.
    step_n = (count_a * count_b).to(tl.int64)
    s0 = tl.zeros((_ROWS * _COLUMNS,), tl.float32)
    s1, s2, s3, s4, s5, s6, s7 = s0, s0, s0, s0, s0, s0, s0
    for n in tl.range(first, last + 1):
        plane = n - middle_n
        a, b = offset_a + slope_a * plane, offset_b + slope_b * plane
        v00, v01, v10, v11, fa, fb = _corners(cells + n * step_n, a, b, middle_a, middle_b, count_b)
        near = v00 + fb * (v01 - v00)
        value = near + fa * (v10 + fb * (v11 - v10) - near)
        s0 += _into(value, view, 0)
        s1 += _into(value, view, 1)
        if MATERIALS > 1:
            s2 += _into(value, view, 2)
        if MATERIALS > 2:
            s3 += _into(value, view, 3)
        if MATERIALS > 3:
            s4 += _into(value, view, 4)
            s5 += _into(value, view, 5)
            s6 += _into(value, view, 6)
            s7 += _into(value, view, 7)
    step, _, _ = _length(view, slope_a, slope_b)
    # Rays without a direction to speak of met nothing.
    step = tl.where(s0 > 0.0, step, 0.0)
    mask = (row < rows) & (column < columns)
    size = rows * columns
    out += tl.load(view + _PLACE).to(tl.int64) * size * MATERIALS
    out += row * columns + column
    _put(out, 0, s0, s1, step, view, mask)
    if MATERIALS > 1:
        _put(out + size, 1, s1, s2, step, view, mask)
    if MATERIALS > 2:
        _put(out + 2 * size, 2, s2, s3, step, view, mask)
    if MATERIALS > 3:
        _put(out + 3 * size, 3, s3, s4, step, view, mask)
    if MATERIALS > 4:
        _put(out + 4 * size, 4, s4, s5, step, view, mask)
    if MATERIALS > 5:
        _put(out + 5 * size, 5, s5, s6, step, view, mask)
    if MATERIALS > 6:
        _put(out + 6 * size, 6, s6, s7, step, view, mask)


@triton.jit
def _gain(value, view, slot, below):  # type: ignore[no-untyped-def]
    """Attenuation per stored value: the slot's own above its beginning, else ``below``."""
    low, gain = tl.load(view + _TABLE + slot), tl.load(view + _TABLE + 2 * _SLOTS + slot)
    return tl.where(value > low, gain, below)


@triton.jit
def _attenuation(value, view):  # type: ignore[no-untyped-def]
    """Attenuation of stored values, and its slope, of a table of up to four materials."""
    gains = view + _TABLE + 2 * _SLOTS
    total = tl.load(gains) * _into(value, view, 0)
    slope = tl.load(gains) + value * 0.0
    for slot in tl.static_range(1, 5):
        total += tl.load(gains + slot) * _into(value, view, slot)
        slope = _gain(value, view, slot, slope)
    return total, slope


@triton.jit
def gradient_kernel(  # type: ignore[no-untyped-def]
    cells, views, out, rows, columns, count_a, count_b, count_n, VIEW: tl.constexpr
):  # fmt: skip
    """Fill (7, rows, columns) at each view's place with a line integral and six derivatives.

    A view's table: where the slots' ranges begin, their widths, attenuation per stored
    value in them; from ``_SPEEDS`` on, for each parameter, the change of the view's first
    five numbers, 15 coefficients.
    """
    view = views + tl.program_id(1) * VIEW
    row, column = _pixels(columns)
    r, c = row - (rows - 1) * 0.5, column - (columns - 1) * 0.5
    per_dn = 1.0 / _at(view + 12, r, c)
    offset_a, offset_b = _at(view, r, c) * per_dn, _at(view + 3, r, c) * per_dn
    slope_a, slope_b = _at(view + 6, r, c) * per_dn, _at(view + 9, r, c) * per_dn
    first, last = _planes(view, offset_a, slope_a, offset_b, slope_b, count_a, count_b, count_n)
    middle_a, middle_b = tl.load(view + _CENTRE), tl.load(view + _CENTRE + 1)
    middle_n = tl.load(view + _CENTRE + 2)
    step_n = (count_a * count_b).to(tl.int64)
    total = tl.zeros((_ROWS * _COLUMNS,), tl.float32)
    by_a, by_b, by_an, by_bn = total, total, total, total
    for n in tl.range(first, last + 1):
        plane = n - middle_n
        a, b = offset_a + slope_a * plane, offset_b + slope_b * plane
        v00, v01, v10, v11, fa, fb = _corners(cells + n * step_n, a, b, middle_a, middle_b, count_b)
        near = v00 + fb * (v01 - v00)
        along_a = v10 + fb * (v11 - v10) - near
        along_b = (v01 - v00) + fa * ((v11 - v10) - (v01 - v00))
        attenuated, slope = _attenuation(near + fa * along_a, view)
        total += attenuated
        along_a *= slope
        along_b *= slope
        by_a += along_a
        by_b += along_b
        by_an += along_a * plane
        by_bn += along_b * plane
    step, long_a, long_b = _length(view, slope_a, slope_b)
    hit = total != 0.0
    mask = (row < rows) & (column < columns)
    size = rows * columns
    out += tl.load(view + _PLACE).to(tl.int64) * size * 7
    out += row * columns + column
    tl.store(out, tl.where(hit, total * step, 0.0), mask=mask)
    for k in tl.static_range(6):
        speed = view + _SPEEDS + 15 * k
        by_dn = _at(speed + 12, r, c)
        d_offset_a = (_at(speed, r, c) - offset_a * by_dn) * per_dn
        d_offset_b = (_at(speed + 3, r, c) - offset_b * by_dn) * per_dn
        d_slope_a = (_at(speed + 6, r, c) - slope_a * by_dn) * per_dn
        d_slope_b = (_at(speed + 9, r, c) - slope_b * by_dn) * per_dn
        change = by_a * d_offset_a + by_an * d_slope_a + by_b * d_offset_b + by_bn * d_slope_b
        longer = total * (long_a * d_slope_a + long_b * d_slope_b)
        tl.store(out + (k + 1) * size, tl.where(hit, change * step + longer, 0.0), mask=mask)
