"""A line-integral image and its derivatives with respect to the pose of what is seen.

The image is a sum over planes of what is read where the ray meets them. Moving the scan
moves that place, so each derivative is a sum of the reading's slope times the place's
speed: both come out of one pass, exactly (forward mode), for about twice the time of an
image. Rays are those of :mod:`osteoprint.xray.projector`.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from osteoprint.frames import rigid
from osteoprint.xray.camera import Camera
from osteoprint.xray.materials import AIR_HU
from osteoprint.xray.projector import (
    beam_in,
    block_reach,
    clip_planes,
    line_of,
    next_span,
    rays,
)
from osteoprint.xray.traced import TracedVolume
from osteoprint.xray.vectors import widest_vectors


def motion(parameters: NDArray[np.float64], centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """(4, 4) rigid motion of a scan: a rotation about ``centre``, then a shift.

    Parameters
    ----------
    parameters : (6,) rotation vector in radians, then translation in mm, both in LPS.
    centre : (3,) LPS mm, the point that the rotation leaves where it is.
    """
    from scipy.spatial.transform import Rotation

    rotation = Rotation.from_rotvec(parameters[:3]).as_matrix()
    return rigid(rotation, centre - rotation @ centre + parameters[3:])


def image_and_gradient(
    traced: TracedVolume,
    camera: Camera,
    mu_per_mm: NDArray[np.float64],
    centre: NDArray[np.float64],
    pose: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Line integrals and how they change when the scan is moved.

    Parameters
    ----------
    traced : the scan.
    camera : where source and detector are.
    mu_per_mm : (M,) attenuation of the table's materials, or any other weights.
    centre : (3,) LPS mm; rotations are about this point of the scan, once posed.
    pose : (4, 4) rigid: where the scan lies, LPS -> LPS; where it was recorded if left out.

    Returns
    -------
    (rows, columns) float32 line integrals, and (6, rows, columns) float32 their derivatives
    at zero with respect to the six parameters of :func:`motion`, applied after ``pose``:
    per radian, then per mm.

    Raises
    ------
    ValueError : not one weight to a material, or more than four materials.
    """
    posed = traced if pose is None else at_pose(traced, pose)
    lines = rays(posed, camera)
    low, width, gain = slopes(traced, np.asarray(mu_per_mm, dtype=np.float64))
    rows, columns = camera.geometry.rows, camera.geometry.columns
    out = np.zeros((7, rows, columns), dtype=np.float32)
    reach = block_reach(lines, rows, columns)
    matrix = posed.world_to_grid
    for layout in posed.layouts(lines.axis):
        marks = posed.marks(lines.axis, layout, reach)
        moving = speeds(matrix, lines.axis, layout.first_plane, centre)
        beam = beam_in(lines, layout)
        _trace(layout.packed, marks, beam, lines.to_mm, low, width, gain, *moving, out)
    return out[0], out[1:]


def at_pose(traced: TracedVolume, pose: NDArray[np.float64]) -> TracedVolume:
    """The same scan moved: ``pose`` is (4, 4) rigid, LPS -> LPS. Nothing is copied."""
    from dataclasses import replace

    from osteoprint.frames import invert_rigid

    return replace(traced, world_to_grid=traced.world_to_grid @ invert_rigid(pose))


def speeds(
    matrix: NDArray[np.float64], axis: int, first_plane: int, centre: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(6, 3, 3) and (6, 3): a grid point's speed is the one times the point plus the other.

    A scan that moves one way sees a point that rests move the other way. Points are in the
    rays' axes, with planes counted from ``first_plane``; ``matrix`` is LPS mm -> grid.
    """
    order = [a for a in range(3) if a != axis] + [axis]
    linear, offset = matrix[:3, :3][order], matrix[:3, 3][order].copy()
    offset[2] -= first_plane
    back = np.linalg.inv(linear)
    spin = np.zeros((6, 3, 3))
    shift = np.zeros((6, 3))
    for k in range(3):
        cross = np.cross(np.eye(3)[k], np.eye(3)).T
        spin[k] = -linear @ cross @ back
        # The point in the world is back @ (grid - offset); the centre rests.
        shift[k] = -spin[k] @ (offset + linear @ centre)
        shift[3 + k] = -linear[:, k]
    return spin, shift


def slopes(
    traced: TracedVolume, mu: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """(8,) each: where a range of stored values begins, its width, attenuation per value in it."""
    knots = (traced.materials.knots_hu().astype(np.float64) - AIR_HU) * traced.quanta_per_hu
    count = len(knots) - 1
    if mu.shape != (count,):
        raise ValueError(f"{mu.shape[0]} weights for {count} materials")
    if count > 4:
        raise ValueError("a table of more than 4 materials has no pose gradient")
    low, width = np.full(8, 1e9, np.float32), np.full(8, 1e9, np.float32)
    gain = np.zeros(8, np.float32)
    low[: count + 1] = knots
    width[:count] = np.diff(knots)
    gain[:count] = np.diff(np.concatenate([[0.0], mu])) / np.diff(knots)
    gain[count] = mu[-1] / (knots[-1] - knots[-2])
    return low, width, gain


@nb.njit(fastmath=True, error_model="numpy", cache=True)
def _read(cells, base, strides, a0, slope_a, b0, slope_b, count, low, width, gain):  # type: ignore[no-untyped-def]
    """Sums over planes: attenuation; its slope along a, along b; and both times the plane."""
    widest_vectors()  # type: ignore[call-arg]
    zero, half, bits = np.float32(0.0), np.uint32(0xFFFF), np.uint32(16)
    value_sum = by_a = by_b = by_an = by_bn = zero
    l1, l2, l3, l4 = low[1], low[2], low[3], low[4]
    w0, w1, w2, w3, w4 = width[0], width[1], width[2], width[3], width[4]
    g0, g1, g2, g3, g4 = gain[0], gain[1], gain[2], gain[3], gain[4]
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
        along_a = v10 + fb * (v11 - v10) - near_a
        value = near_a + fa * along_a
        along_b = (v01 - v00) + fa * ((v11 - v10) - (v01 - v00))
        value_sum += (
            g0 * min(value, w0)
            + g1 * min(max(value - l1, zero), w1)
            + g2 * min(max(value - l2, zero), w2)
            + g3 * min(max(value - l3, zero), w3)
            + g4 * min(max(value - l4, zero), w4)
        )
        slope = g1 if value > l1 else g0
        slope = g2 if value > l2 else slope
        slope = g3 if value > l3 else slope
        slope = g4 if value > l4 else slope
        by_a += slope * along_a
        by_b += slope * along_b
        by_an += slope * along_a * plane
        by_bn += slope * along_b * plane
    return value_sum, by_a, by_b, by_an, by_bn


@nb.njit(cache=True)
def _speed(spin, shift, k, x, y, z, a_point):  # type: ignore[no-untyped-def]
    """Speed of a point (or of a direction) in the grid for parameter ``k``."""
    u = spin[k, 0, 0] * x + spin[k, 0, 1] * y + spin[k, 0, 2] * z
    v = spin[k, 1, 0] * x + spin[k, 1, 1] * y + spin[k, 1, 2] * z
    w = spin[k, 2, 0] * x + spin[k, 2, 1] * y + spin[k, 2, 2] * z
    if a_point:
        return u + shift[k, 0], v + shift[k, 1], w + shift[k, 2]
    return u, v, w


@nb.njit(parallel=True, fastmath=True, error_model="numpy", cache=True)
def _trace(packed, marks, beam, to_mm, low, width, gain, spin, shift, out):  # type: ignore[no-untyped-def]
    """Add to ``out`` (7, rows, columns) the line integral and its six derivatives."""
    count_a, count_b, count_n = packed.shape
    cells = packed.reshape(packed.size)
    _, rows, columns = out.shape
    start, step_row, step_column, source, parallel = beam
    for row in nb.prange(rows):
        for column in range(columns):
            line = line_of(row, column, start, step_row, step_column, source, parallel)
            oa, sa, ob, sb = line
            near, far = clip_planes(0.0, count_n - 1.0, oa, sa, count_a - 1.001)
            near, far = clip_planes(near, far, ob, sb, count_b - 1.001)
            first, last = int(np.ceil(near)), int(np.floor(far))
            value = by_a = by_b = by_an = by_bn = 0.0
            while first <= last:
                begin, end = next_span(marks, first, last, oa, sa, ob, sb)
                if begin > last:
                    break
                v, ga, gb, gan, gbn = _read(
                    cells, np.uint64(begin), (count_b * count_n, count_n),
                    np.float32(oa + sa * begin), np.float32(sa),
                    np.float32(ob + sb * begin), np.float32(sb),
                    end - begin, low, width, gain,
                )  # fmt: skip
                value += v
                by_a, by_b = by_a + ga, by_b + gb
                by_an, by_bn = by_an + gan + begin * ga, by_bn + gbn + begin * gb
                first = end
            if value == 0.0:
                continue
            x = to_mm[0, 0] * sa + to_mm[0, 1] * sb + to_mm[0, 2]
            y = to_mm[1, 0] * sa + to_mm[1, 1] * sb + to_mm[1, 2]
            z = to_mm[2, 0] * sa + to_mm[2, 1] * sb + to_mm[2, 2]
            step_mm = np.sqrt(x * x + y * y + z * z)
            # d step / d slope_a and d step / d slope_b
            long_a = (x * to_mm[0, 0] + y * to_mm[1, 0] + z * to_mm[2, 0]) / step_mm
            long_b = (x * to_mm[0, 1] + y * to_mm[1, 1] + z * to_mm[2, 1]) / step_mm
            pa = start[0] + row * step_row[0] + column * step_column[0]
            pb = start[1] + row * step_row[1] + column * step_column[1]
            pn = start[2] + row * step_row[2] + column * step_column[2]
            dn = source[2] if parallel else pn - source[2]
            out[0, row, column] += value * step_mm
            for k in range(6):
                ua, ub, un = _speed(spin, shift, k, pa, pb, pn, True)
                va, vb, vn = _speed(spin, shift, k, source[0], source[1], source[2], not parallel)
                if not parallel:
                    va, vb, vn = ua - va, ub - vb, un - vn
                d_sa, d_sb = (va - sa * vn) / dn, (vb - sb * vn) / dn
                d_oa = ua - un * sa - pn * d_sa
                d_ob = ub - un * sb - pn * d_sb
                change = by_a * d_oa + by_an * d_sa + by_b * d_ob + by_bn * d_sb
                out[1 + k, row, column] += change * step_mm + value * (
                    long_a * d_sa + long_b * d_sb
                )
