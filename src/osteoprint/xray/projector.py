"""Path length per material along every ray from the source to a pixel.

Joseph's method (IEEE Trans Med Imaging 1982;1:192): a ray steps from plane to plane of
voxel centres along the axis most parallel to the beam and reads each plane by bilinear
interpolation, so there is no step length to choose. The value read, in HU, is split
among the materials as a mixture of its two neighbours in the table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba as nb
import numpy as np
from numpy.typing import NDArray

from osteoprint.ct.volume import Volume
from osteoprint.xray.camera import Camera
from osteoprint.xray.materials import AIR_HU, BODY, MaterialTable


@dataclass(frozen=True, eq=False)
class TracedVolume:
    """A scan made ready for tracing: cropped to what is not air, wrapped in one voxel of air.

    Attributes
    ----------
    grids : three copies of the padded grid, (a, b, n) float32 HU, whose last axis is the
        scan's axis 0, 1 and 2: a ray reads along the axis it runs along.
    world_to_grid : (4, 4) LPS mm -> index in the padded grid (axes as in the scan).
    materials : how HU are read.
    """

    grids: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
    world_to_grid: NDArray[np.float64]
    materials: MaterialTable


def prepare(volume: Volume, materials: MaterialTable = BODY) -> TracedVolume:
    """Make a scan ready for :func:`path_lengths`; do it once per scan.

    Everything within 1 HU of air counts as empty and is cropped away at the border.
    """
    filled = volume.volume_hu > AIR_HU + 1.0
    lows, highs = [], []
    for axis in range(3):
        hit = np.flatnonzero(filled.any(axis=tuple(a for a in range(3) if a != axis)))
        lows.append(int(hit[0]) if hit.size else 0)
        highs.append(int(hit[-1]) + 1 if hit.size else 1)
    cropped = volume.crop((lows[0], lows[1], lows[2]), (highs[0], highs[1], highs[2]))
    padded = np.pad(cropped.volume_hu.astype(np.float32), 1, constant_values=AIR_HU)
    np.maximum(padded, AIR_HU, out=padded)
    shift = np.eye(4)
    shift[:3, 3] = 1.0
    grids = tuple(np.ascontiguousarray(np.moveaxis(padded, axis, 2)) for axis in range(3))
    return TracedVolume((grids[0], grids[1], grids[2]), shift @ cropped.world_to_voxel, materials)


def path_lengths(traced: TracedVolume, camera: Camera) -> NDArray[np.float32]:
    """(M, rows, columns) float32: mm of each material on the way to each pixel.

    M counts the table's materials; air is left out. A source inside the scan is treated
    as if the ray began behind it, at the scan's far side.
    """
    axis, start, step_row, step_column, source = _rays_in_grid(traced, camera)
    grid = traced.grids[axis]
    knots = traced.materials.knots_hu()
    grid_to_world = np.linalg.inv(traced.world_to_grid)[:3, :3]
    order = [a for a in range(3) if a != axis] + [axis]
    rows, columns = camera.geometry.rows, camera.geometry.columns
    out = np.zeros((rows, len(knots) - 1, columns), dtype=np.float32)
    _trace(
        grid,
        np.ascontiguousarray(grid_to_world[:, order]),
        start[order],
        step_row[order],
        step_column[order],
        source[order],
        camera.is_parallel,
        knots,
        out,
    )
    return np.ascontiguousarray(out.transpose(1, 0, 2))


def path_lengths_reference(traced: TracedVolume, camera: Camera) -> NDArray[np.float64]:
    """:func:`path_lengths` written plainly in numpy: slow, readable, the one to trust."""
    from scipy.ndimage import map_coordinates

    axis, start, step_row, step_column, source = _rays_in_grid(traced, camera)
    grid = np.moveaxis(traced.grids[axis], 2, axis)
    grid_to_world = np.linalg.inv(traced.world_to_grid)[:3, :3]
    r, c = np.meshgrid(
        np.arange(camera.geometry.rows), np.arange(camera.geometry.columns), indexing="ij"
    )
    pixel = start + r[..., None] * step_row + c[..., None] * step_column
    direction = np.broadcast_to(source, pixel.shape) if camera.is_parallel else pixel - source
    per_plane = direction / direction[..., axis : axis + 1]
    step_mm = np.linalg.norm(per_plane @ grid_to_world.T, axis=-1)
    total = np.zeros((*r.shape, len(traced.materials.materials)))
    for plane in range(grid.shape[axis]):
        point = pixel + (plane - pixel[..., axis])[..., None] * per_plane
        hu = map_coordinates(grid, np.moveaxis(point, -1, 0), order=1, mode="constant", cval=AIR_HU)
        total += traced.materials.fractions(hu.astype(np.float64))
    return np.moveaxis(total * step_mm[..., None], -1, 0)


def _rays_in_grid(
    traced: TracedVolume, camera: Camera
) -> tuple[int, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Main axis, pixel (0, 0), row step, column step and source, all in grid indices.

    For a parallel beam the last one is the direction of the rays instead of a point.
    """
    matrix = traced.world_to_grid
    first, step_row, step_column = camera.detector_plane()
    beam = matrix[:3, :3] @ camera.camera_to_world[:3, 2]
    axis = int(np.argmax(np.abs(beam)))
    start = matrix[:3, :3] @ first + matrix[:3, 3]
    source = beam
    if not camera.is_parallel:
        source = matrix[:3, :3] @ camera.camera_to_world[:3, 3] + matrix[:3, 3]
    return axis, start, matrix[:3, :3] @ step_row, matrix[:3, :3] @ step_column, source


@nb.njit(cache=True)
def _clip_planes(low, high, offset, slope, limit):  # type: ignore[no-untyped-def]
    """Narrow planes [low, high] to those where 0 <= offset + slope * plane <= limit."""
    if abs(slope) < 1e-9:
        return (low, high) if 0.0 <= offset <= limit else (1.0, 0.0)
    t0 = -offset / slope
    t1 = (limit - offset) / slope
    return max(low, min(t0, t1)), min(high, max(t0, t1))


@nb.njit(parallel=True, fastmath=True, cache=True)
def _trace(grid, grid_to_world, start, step_row, step_column, source, parallel, knots, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` (rows, M, columns); all vectors are in grid axes (a, b, n)."""
    count_a, count_b, count_n = grid.shape
    rows, n_materials, columns = out.shape
    for row in nb.prange(rows):
        for column in range(columns):
            pa = start[0] + row * step_row[0] + column * step_column[0]
            pb = start[1] + row * step_row[1] + column * step_column[1]
            pn = start[2] + row * step_row[2] + column * step_column[2]
            if parallel:
                da, db, dn = source[0], source[1], source[2]
            else:
                da, db, dn = pa - source[0], pb - source[1], pn - source[2]
            slope_a, slope_b = da / dn, db / dn
            offset_a, offset_b = pa - pn * slope_a, pb - pn * slope_b
            # The outermost voxels are air: rays may stop half a cell short of the border.
            low, high = _clip_planes(0.0, count_n - 1.0, offset_a, slope_a, count_a - 1.001)
            low, high = _clip_planes(low, high, offset_b, slope_b, count_b - 1.001)
            first = int(np.ceil(low))
            last = int(np.floor(high))
            if last < first:
                continue
            length2 = 0.0
            for axis in range(3):
                w = (
                    grid_to_world[axis, 0] * slope_a
                    + grid_to_world[axis, 1] * slope_b
                    + grid_to_world[axis, 2]
                )
                length2 += w * w
            step_mm = np.float32(np.sqrt(length2))
            for plane in range(first, last + 1):
                a = offset_a + slope_a * plane
                b = offset_b + slope_b * plane
                ia, ib = int(a), int(b)
                fa, fb = np.float32(a - ia), np.float32(b - ib)
                v00 = grid[ia, ib, plane]
                v01 = grid[ia, ib + 1, plane]
                v10 = grid[ia + 1, ib, plane]
                v11 = grid[ia + 1, ib + 1, plane]
                low_row = v00 + fb * (v01 - v00)
                hu = low_row + fa * (v10 + fb * (v11 - v10) - low_row)
                if hu <= knots[0]:
                    continue
                m = 0
                while m < n_materials - 1 and hu >= knots[m + 1]:
                    m += 1
                share = (hu - knots[m]) / (knots[m + 1] - knots[m])
                out[row, m, column] += share
                if m > 0 and share < 1.0:
                    out[row, m - 1, column] += np.float32(1.0) - share
            for m in range(n_materials):
                out[row, m, column] *= step_mm
