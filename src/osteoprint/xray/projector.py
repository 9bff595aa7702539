"""Path length per material along every ray from the source to a pixel.

Joseph's method (IEEE Trans Med Imaging 1982;1:192): a ray steps from plane to plane of
voxel centres along the axis most parallel to the beam and reads each plane by bilinear
interpolation, so there is no step length to choose. The value read, in HU, is split
among the materials as a mixture of its two neighbours in the table.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

from osteoprint.xray.camera import Camera
from osteoprint.xray.materials import AIR_HU
from osteoprint.xray.traced import CELLS, PLANES, Layout, TracedVolume, prepare
from osteoprint.xray.vectors import widest_vectors

__all__ = ["Rays", "TracedVolume", "path_lengths", "path_lengths_reference", "prepare", "rays"]

# Rays of neighbouring pixels read the same voxels: so many rows and columns go together.
_TILE = (16, 32)


Vector = NDArray[np.float64]
# Pixel (0, 0), row step, column step, source or direction, and whether that is a direction.
Beam = tuple[Vector, Vector, Vector, Vector, bool]


class Rays(NamedTuple):
    """All rays of an image in grid axes turned so that the main axis comes last.

    Attributes
    ----------
    axis : 0, 1 or 2, the scan's axis most parallel to the beam.
    start, step_row, step_column : (3,) pixel (0, 0) and the steps to the next pixels.
    source : (3,) the source, or the direction of the rays of a parallel beam.
    parallel : whether the beam is parallel.
    to_mm : (3, 3) a step in these axes -> LPS mm.
    """

    axis: int
    start: NDArray[np.float64]
    step_row: NDArray[np.float64]
    step_column: NDArray[np.float64]
    source: NDArray[np.float64]
    parallel: bool
    to_mm: NDArray[np.float64]


def rays(traced: TracedVolume, camera: Camera) -> Rays:
    """Where the rays of an image run through a scan."""
    matrix = traced.world_to_grid
    first, step_row, step_column = camera.detector_plane()
    beam = matrix[:3, :3] @ camera.camera_to_world[:3, 2]
    axis = int(np.argmax(np.abs(beam)))
    order = [a for a in range(3) if a != axis] + [axis]
    source = beam
    if not camera.is_parallel:
        source = matrix[:3, :3] @ camera.camera_to_world[:3, 3] + matrix[:3, 3]
    return Rays(
        axis,
        (matrix[:3, :3] @ first + matrix[:3, 3])[order],
        (matrix[:3, :3] @ step_row)[order],
        (matrix[:3, :3] @ step_column)[order],
        source[order],
        camera.is_parallel,
        np.ascontiguousarray(np.linalg.inv(matrix)[:3, :3][:, order]),
    )


def path_lengths(
    traced: TracedVolume, camera: Camera, *, device: str = "cpu"
) -> NDArray[np.float32]:
    """(M, rows, columns) float32: mm of each material on the way to each pixel.

    M counts the table's materials; air is left out. A source inside the scan is treated
    as if the ray began behind it, at the scan's far side.

    Parameters
    ----------
    traced : the scan, from :func:`prepare`.
    camera : where source and detector are.
    device : "cpu", or a CUDA device, which agrees to 1e-3; many images at once, or without
        fetching them from the device, are :func:`osteoprint.xray.gpu.path_lengths_gpu`'s.

    Raises
    ------
    ValueError : the table has more than 7 materials.
    InputError : there is no such device.
    """
    if device != "cpu":
        # Brings torch with it: only when asked for.
        from osteoprint.xray.gpu import path_lengths_gpu

        return np.asarray(path_lengths_gpu(traced, camera, device).cpu().numpy())
    lines = rays(traced, camera)
    rows, columns = camera.geometry.rows, camera.geometry.columns
    low, width = slots(traced)
    materials = len(traced.materials.materials)
    trace = _tracer(4 if materials <= 3 else 8)
    out = np.zeros((materials, rows, columns), dtype=np.float32)
    reach = block_reach(lines, rows, columns)
    for layout in traced.layouts(lines.axis):
        marks = traced.marks(lines.axis, layout, reach)
        beam = beam_in(lines, layout)
        threads = nb.get_num_threads()
        dense = bool(layout.marks.all())
        trace(layout.packed, marks, dense, beam, lines.to_mm, low, width, threads, out)
    return out


def path_lengths_reference(traced: TracedVolume, camera: Camera) -> NDArray[np.float64]:
    """:func:`path_lengths` written plainly in numpy: slow, readable, the one to trust."""
    from scipy.ndimage import map_coordinates

    lines = rays(traced, camera)
    grid = np.pad(traced.volume_hu.astype(np.float64), 1, constant_values=AIR_HU)
    grid = np.maximum(np.moveaxis(grid, lines.axis, 2), AIR_HU)
    r, c = np.meshgrid(
        np.arange(camera.geometry.rows), np.arange(camera.geometry.columns), indexing="ij"
    )
    pixel = lines.start + r[..., None] * lines.step_row + c[..., None] * lines.step_column
    if lines.parallel:
        direction = np.broadcast_to(lines.source, pixel.shape)
    else:
        direction = pixel - lines.source
    per_plane = direction / direction[..., 2:]
    step_mm = np.linalg.norm(per_plane @ lines.to_mm.T, axis=-1)
    total = np.zeros((*r.shape, len(traced.materials.materials)))
    for plane in range(grid.shape[2]):
        point = pixel + (plane - pixel[..., 2])[..., None] * per_plane
        hu = map_coordinates(grid, np.moveaxis(point, -1, 0), order=1, mode="constant", cval=AIR_HU)
        total += traced.materials.fractions(hu)
    return np.moveaxis(total * step_mm[..., None], -1, 0)


def block_reach(lines: Rays, rows: int, columns: int) -> tuple[int, int]:
    """How many blocks a ray may stray along a and b within half of PLANES planes."""
    r, c = np.array([0, 0, rows - 1, rows - 1]), np.array([0, columns - 1, 0, columns - 1])
    pixel = lines.start + r[:, None] * lines.step_row + c[:, None] * lines.step_column
    direction = lines.source[None] if lines.parallel else pixel - lines.source
    slopes = np.abs(direction[:, :2] / direction[:, 2:]).max(axis=0)
    far = np.ceil(np.minimum(slopes, 1e3) * (PLANES / 2) / CELLS).astype(int)
    return max(int(far[0]), 1), max(int(far[1]), 1)


def slots(traced: TracedVolume) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(8,) float32 each: where each material's range of stored values begins, and its width.

    The slot after the last material holds what lies above it; the rest are out of reach.
    """
    knots = (traced.materials.knots_hu() - np.float32(AIR_HU)) * traced.quanta_per_hu
    if len(knots) > 8:
        raise ValueError("a table of more than 7 materials cannot be traced")
    low = np.full(8, 1e9, np.float32)
    width = np.full(8, 1e9, np.float32)
    low[: len(knots)] = knots
    width[: len(knots) - 1] = np.diff(knots)
    return low, width


def beam_in(lines: Rays, layout: Layout) -> Beam:
    """What a tracer wants to know of the rays, with planes counted from the layout's first."""
    back = np.array([0.0, 0.0, layout.first_plane])
    source = lines.source if lines.parallel else lines.source - back
    return lines.start - back, lines.step_row, lines.step_column, source, lines.parallel


@nb.njit(cache=True)
def clip_planes(low, high, offset, slope, limit):  # type: ignore[no-untyped-def]
    """Narrow planes [low, high] to those where 0 <= offset + slope * plane <= limit."""
    if abs(slope) < 1e-9:
        return (low, high) if 0.0 <= offset <= limit else (1.0, 0.0)
    t0 = -offset / slope
    t1 = (limit - offset) / slope
    return max(low, min(t0, t1)), min(high, max(t0, t1))


@nb.njit(cache=True)
def line_of(row, column, start, step_row, step_column, source, parallel):  # type: ignore[no-untyped-def]
    """A pixel's ray: a and b at plane 0, and their change per plane."""
    pa = start[0] + row * step_row[0] + column * step_column[0]
    pb = start[1] + row * step_row[1] + column * step_column[1]
    pn = start[2] + row * step_row[2] + column * step_column[2]
    if parallel:
        da, db, dn = source[0], source[1], source[2]
    else:
        da, db, dn = pa - source[0], pb - source[1], pn - source[2]
    slope_a, slope_b = da / dn, db / dn
    return pa - pn * slope_a, slope_a, pb - pn * slope_b, slope_b


@nb.njit(cache=True)
def next_span(marks, first, last, offset_a, slope_a, offset_b, slope_b):  # type: ignore[no-untyped-def]
    """The next run of planes within [first, last] that is not all air: (begin, end), end outside.

    Its length is a multiple of PLANES where the range allows: whole vectors are read.
    ``begin`` exceeds ``last`` where nothing is left.
    """
    begin = last + 1
    end = last + 1
    block = first // PLANES
    while block * PLANES <= last:
        middle = min(max(block * PLANES + 0.5 * (PLANES - 1), first), last)
        a = int(offset_a + slope_a * middle) // CELLS
        b = int(offset_b + slope_b * middle) // CELLS
        if marks[a, b, block]:
            if begin > last:
                begin = max(first, block * PLANES)
        elif begin <= last:
            end = block * PLANES
            break
        block += 1
    if begin <= last:
        end = min(begin + (end - begin + PLANES - 1) // PLANES * PLANES, last + 1)
        begin = max(first, end - (end - begin + PLANES - 1) // PLANES * PLANES)
    return begin, end


@nb.njit(cache=True)
def _range_of(line_1, line_2, line_3, line_4, part, near, far, limit):  # type: ignore[no-untyped-def]
    """Lowest and highest index that four rays reach along a (part 0) or b (part 2)."""
    low, high = 1e9, -1e9
    for line in (line_1, line_2, line_3, line_4):
        for plane in (near, far):
            at = line[part] + line[part + 1] * plane
            low, high = min(low, at), max(high, at)
    return max(int(low), 0), min(int(high) + 1, limit - 1)


@nb.njit(cache=True)
def fetch_ahead(packed, marks, row_0, row_1, column_0, column_1, beam):  # type: ignore[no-untyped-def]
    """Touch the cells that a tile of rays will read, in order, so that they are at hand.

    A ray by itself waits for memory at every step aside; touched like this, many lines come
    at once. Returns something made of all of them: kept, lest the compiler drop the loop.
    """
    count_a, count_b, count_n = packed.shape
    start, step_row, step_column, source, parallel = beam
    one = line_of(row_0, column_0, start, step_row, step_column, source, parallel)
    two = line_of(row_0, column_1, start, step_row, step_column, source, parallel)
    three = line_of(row_1, column_0, start, step_row, step_column, source, parallel)
    four = line_of(row_1, column_1, start, step_row, step_column, source, parallel)
    touched = np.uint32(0)
    for block in range(count_n // PLANES):
        near, far = float(block * PLANES), float((block + 1) * PLANES - 1)
        a_0, a_1 = _range_of(one, two, three, four, 0, near, far, count_a)
        b_0, b_1 = _range_of(one, two, three, four, 2, near, far, count_b)
        if a_0 > a_1 or b_0 > b_1:
            continue
        if not marks[(a_0 + a_1) // (2 * CELLS), (b_0 + b_1) // (2 * CELLS), block]:
            continue
        for a in range(a_0, a_1 + 1):
            for b in range(b_0, b_1 + 1):
                touched ^= packed[a, b, block * PLANES]
    return touched


@lru_cache(maxsize=2)
def _tracer(slots: int):  # type: ignore[no-untyped-def]
    """Compile a tracer for tables of up to ``slots`` - 1 materials: 3, or as many as 7.

    The number is fixed when compiling, so that sums that nobody asks for cost nothing.
    """
    more = slots > 4

    @nb.njit(fastmath=True, error_model="numpy", cache=True)
    def read(cells, base, strides, a0, slope_a, b0, slope_b, count, low, width):  # type: ignore[no-untyped-def]
        """Sums over ``count`` planes of how far the values reach into each slot's range.

        Written for the compiler's vectoriser: no branch, 32-bit indices, nothing stored.
        """
        widest_vectors()  # type: ignore[call-arg]
        zero, half, bits = np.float32(0.0), np.uint32(0xFFFF), np.uint32(16)
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = zero
        l1, l2, l3 = low[1], low[2], low[3]
        w0, w1, w2, w3 = width[0], width[1], width[2], width[3]
        l4, l5, l6, l7 = low[4], low[5], low[6], low[7]
        w4, w5, w6, w7 = width[4], width[5], width[6], width[7]
        step_a, step_b, row = np.int32(strides[0]), np.int32(strides[1]), np.uint64(strides[0])
        for n in range(np.int32(count)):
            plane = np.float32(np.int32(n))
            a, b = a0 + slope_a * plane, b0 + slope_b * plane
            ia, ib = np.int32(a), np.int32(b)
            fa, fb = a - np.float32(ia), b - np.float32(ib)
            near = np.int32(np.int32(ia * step_a) + np.int32(ib * step_b)) + np.int32(n)
            index = np.uint64(np.uint32(near)) + base
            p, q = cells[index], cells[index + row]
            v00, v01 = np.float32(np.int32(p & half)), np.float32(np.int32(p >> bits))
            v10, v11 = np.float32(np.int32(q & half)), np.float32(np.int32(q >> bits))
            near_a = v00 + fb * (v01 - v00)
            value = near_a + fa * (v10 + fb * (v11 - v10) - near_a)
            s0 += min(value, w0)
            s1 += min(max(value - l1, zero), w1)
            s2 += min(max(value - l2, zero), w2)
            s3 += min(max(value - l3, zero), w3)
            if more:
                s4 += min(max(value - l4, zero), w4)
                s5 += min(max(value - l5, zero), w5)
                s6 += min(max(value - l6, zero), w6)
                s7 += min(max(value - l7, zero), w7)
        return s0, s1, s2, s3, s4, s5, s6, s7

    @nb.njit(fastmath=True, error_model="numpy", cache=True)
    def trace_ray(packed, cells, marks, dense, line, to_mm, low, width, out):  # type: ignore[no-untyped-def]
        """Add to ``out`` (M,) the mm of each material along one ray."""
        widest_vectors()  # type: ignore[call-arg]
        count_a, count_b, count_n = packed.shape
        oa, sa, ob, sb = line
        near, far = clip_planes(0.0, count_n - 1.0, oa, sa, count_a - 1.001)
        near, far = clip_planes(near, far, ob, sb, count_b - 1.001)
        first, last = int(np.ceil(near)), int(np.floor(far))
        t0 = t1 = t2 = t3 = t4 = t5 = t6 = t7 = np.float32(0.0)
        while first <= last:
            begin, end = first, last + 1
            if not dense:
                begin, end = next_span(marks, first, last, oa, sa, ob, sb)
                if begin > last:
                    break
            s0, s1, s2, s3, s4, s5, s6, s7 = read(
                cells, np.uint64(begin), (count_b * count_n, count_n),
                np.float32(oa + sa * begin), np.float32(sa),
                np.float32(ob + sb * begin), np.float32(sb),
                end - begin, low, width,
            )  # fmt: skip
            t0, t1, t2, t3 = t0 + s0, t1 + s1, t2 + s2, t3 + s3
            if more:
                t4, t5, t6, t7 = t4 + s4, t5 + s5, t6 + s6, t7 + s7
            first = end
        if t0 == 0.0:
            return
        x = to_mm[0, 0] * sa + to_mm[0, 1] * sb + to_mm[0, 2]
        y = to_mm[1, 0] * sa + to_mm[1, 1] * sb + to_mm[1, 2]
        z = to_mm[2, 0] * sa + to_mm[2, 1] * sb + to_mm[2, 2]
        step_mm = np.float32(np.sqrt(x * x + y * y + z * z))
        totals = (t0, t1, t2, t3, t4, t5, t6, t7)
        top = out.size - 1
        for m in range(out.size):
            # What reaches into the next range is that material's, except above the last,
            # which only gets denser.
            beyond = totals[m + 1] / width[min(m + 1, top)]
            out[m] += (totals[m] / width[m] + (beyond if m == top else -beyond)) * step_mm

    @nb.njit(parallel=True, fastmath=True, error_model="numpy", cache=True)
    def trace(packed, marks, dense, beam, to_mm, low, width, threads, out):  # type: ignore[no-untyped-def]
        """Add to ``out`` (M, rows, columns) the mm of each material; returns nothing of use."""
        cells = packed.reshape(packed.size)
        _, rows, columns = out.shape
        start, step_row, step_column, source, parallel = beam
        blocks = (rows + _TILE[0] - 1) // _TILE[0]
        share = (blocks + threads - 1) // threads
        touched = np.zeros(share * threads, np.uint32)
        for job in nb.prange(share * threads):
            # Neighbouring blocks go to different threads, since the bone is in the middle.
            row_0 = ((job % share) * threads + job // share) * _TILE[0]
            row_1 = min(row_0 + _TILE[0], rows)
            for column_0 in range(0, columns if row_0 < rows else 0, _TILE[1]):
                column_1 = min(column_0 + _TILE[1], columns)
                touched[job] ^= fetch_ahead(
                    packed, marks, row_0, row_1 - 1, column_0, column_1 - 1, beam
                )
                for row in range(row_0, row_1):
                    for column in range(column_0, column_1):
                        line = line_of(row, column, start, step_row, step_column, source, parallel)
                        lengths = out[:, row, column]
                        trace_ray(packed, cells, marks, dense, line, to_mm, low, width, lengths)
        return touched

    return trace
