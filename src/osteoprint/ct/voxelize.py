"""A closed surface becomes a grid: exact occupancy per voxel, and depth below the surface.

The occupancy of a voxel is the fraction of its volume that lies inside the surface. It is
found without sampling: every triangle is cut into the voxels it passes, and each piece,
projected along i, adds (or takes away) everything on its far side along i. Summing along i
then gives the exact enclosed volume in every voxel (the divergence theorem, voxel by
voxel). A triangle's corner or edge that falls on a grid plane needs no special rule,
because a piece without area adds nothing.
"""

from __future__ import annotations

import numpy as np
import trimesh
from numba import njit
from numpy.typing import NDArray

from osteoprint.errors import ScanError

# A triangle cut by six planes has at most 3 + 6 corners.
_MAX_CORNERS = 12
# Far below what float32 can show in a fraction, far above the float64 rounding that piles up.
_ROUNDING = 1e-6


def occupancy(
    mesh: trimesh.Trimesh,
    shape: tuple[int, int, int],
    voxel_to_world: NDArray[np.float64],
) -> NDArray[np.float32]:
    """How much of each voxel lies inside a closed surface.

    Parameters
    ----------
    mesh : closed surface, LPS mm; inward-facing ones are taken as outward. Where bodies
        overlap the voxel counts once.
    shape : (I, J, K) of the grid.
    voxel_to_world : (4, 4) affine, index of a voxel's centre -> LPS mm. Parts of the
        surface outside the grid are allowed.

    Returns
    -------
    (I, J, K) float32 in [0, 1]: exact volume fractions, up to float32.

    Raises
    ------
    ScanError : the surface is empty or not closed.
    """
    vertices, faces = closed_surface(mesh)
    world_to_voxel = np.linalg.inv(np.asarray(voxel_to_world, dtype=np.float64))
    index = vertices @ world_to_voxel[:3, :3].T + world_to_voxel[:3, 3]
    result = np.zeros(shape, dtype=np.float32)
    # Work only where the surface is: a scan around one bone is mostly nothing.
    low = np.clip(np.floor(index.min(axis=0) + 0.5).astype(np.int64), 0, shape)
    high = np.clip(np.floor(index.max(axis=0) + 0.5).astype(np.int64) + 1, 0, shape)
    if np.any(high <= low):
        return result
    steps = np.zeros((high[0] - low[0] + 1, high[1] - low[1], high[2] - low[2]))
    # Shifted by half a voxel so that voxel n spans [n, n + 1].
    _add_triangles(np.ascontiguousarray(index - low + 0.5), faces, steps)
    if np.linalg.det(world_to_voxel[:3, :3]) < 0:
        steps *= -1.0  # a mirrored grid turns every face
    inside = result[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    _sum_along_i(steps, inside)
    return result


def closed_surface(
    mesh: trimesh.Trimesh,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Vertices (n, 3) float64 and outward faces (m, 3) int64 of a surface known to be closed.

    Coincident vertices (as in STL files) are merged. Closed means that every directed edge
    is met by as many opposite ones, which also holds for bodies that touch along an edge.

    Raises ScanError if the mesh is empty, not finite, has open edges or inconsistent faces.
    """
    source = "surface"
    if len(mesh.faces) == 0:
        raise ScanError(source, "it has no faces", "give a closed triangle mesh")
    if not np.isfinite(mesh.vertices).all():
        raise ScanError(source, "it has vertices that are not finite", "repair or re-export it")
    open_edges = _open_edges(np.asarray(mesh.faces), len(mesh.vertices))
    if open_edges:
        # process=True merges coincident vertices and nothing else that matters here.
        mesh = trimesh.Trimesh(mesh.vertices, mesh.faces, process=True)
        open_edges = _open_edges(np.asarray(mesh.faces), len(mesh.vertices))
    if open_edges:
        raise ScanError(
            source,
            f"it is not closed or its faces do not all point outwards ({open_edges} edges)",
            "close its holes and orient its faces",
        )
    vertices = np.ascontiguousarray(mesh.vertices, dtype=np.float64)
    faces = np.ascontiguousarray(mesh.faces, dtype=np.int64)
    corners = vertices[faces] - vertices.mean(axis=0)
    volume = np.einsum("ij,ij->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2]))
    if abs(volume) < 1e-12 * np.ptp(vertices, axis=0).max() ** 3:
        raise ScanError(source, "it encloses no volume", "give a closed triangle mesh")
    return vertices, faces if volume > 0 else np.ascontiguousarray(faces[:, ::-1])


def depth_voxels(occupied: NDArray[np.float32]) -> NDArray[np.float32]:
    """Depth of each voxel's centre below the surface, in voxels, for an isotropic grid.

    Parameters
    ----------
    occupied : (I, J, K) float32 occupancy in [0, 1].

    Returns
    -------
    (I, J, K) float32: exact distance to the nearest voxel that is not full, refined below
    a voxel by that voxel's occupancy; about -0.5 in voxels outside, which it does not
    measure (pass ``1 - occupied`` for those). Infinite where every voxel is full.

    Source: the separable exact distance transform of Felzenszwalb and Huttenlocher,
    Theory of Computing 2012;8:415.
    """
    squared, nearest = _nearest_in_row(occupied)
    _lower_envelopes(squared.transpose(0, 2, 1), nearest.transpose(0, 2, 1))
    _lower_envelopes(squared.transpose(1, 2, 0), nearest.transpose(1, 2, 0))
    return _refined(squared, nearest, occupied)


def _open_edges(faces: NDArray[np.int64], n_vertices: int) -> int:
    """Number of directed edges without an opposite one."""
    start, end = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    stride = np.int64(n_vertices)
    forward, backward = np.sort(start * stride + end), np.sort(end * stride + start)
    if np.array_equal(forward, backward):
        return 0
    keys, inverse = np.unique(np.concatenate([forward, backward]), return_inverse=True)
    balance = np.bincount(inverse[: len(forward)], minlength=len(keys)) - np.bincount(
        inverse[len(forward) :], minlength=len(keys)
    )
    return int(np.abs(balance).sum()) // 2


@njit(cache=True, nogil=True)
def _keep(
    source: NDArray[np.float64],
    count: int,
    axis: int,
    plane: float,
    above: bool,
    target: NDArray[np.float64],
) -> int:
    """Copy the part of a convex polygon on one side of a grid plane; its corner count."""
    sign = 1.0 if above else -1.0
    kept = 0
    for n in range(count):
        m = n + 1 if n + 1 < count else 0
        here = sign * (source[n, axis] - plane)
        there = sign * (source[m, axis] - plane)
        if here >= 0.0:
            target[kept] = source[n]
            kept += 1
        if (here > 0.0 and there < 0.0) or (here < 0.0 and there > 0.0):
            t = here / (here - there)
            for c in range(3):
                target[kept, c] = source[n, c] + t * (source[m, c] - source[n, c])
            target[kept, axis] = plane
            kept += 1
    return kept


@njit(cache=True, nogil=True)
def _span(polygon: NDArray[np.float64], count: int, axis: int, size: int) -> tuple[int, int]:
    """First and last voxel along an axis that a polygon passes, clipped to the grid."""
    low, high = polygon[0, axis], polygon[0, axis]
    for n in range(1, count):
        low = min(low, polygon[n, axis])
        high = max(high, polygon[n, axis])
    first = int(np.floor(low))
    last = max(int(np.ceil(high)) - 1, first)
    return max(first, 0), min(last, size - 1)


@njit(cache=True, nogil=True)
def _slab(
    polygon: NDArray[np.float64],
    count: int,
    axis: int,
    n: int,
    scratch: NDArray[np.float64],
    target: NDArray[np.float64],
) -> int:
    """The part of a polygon with coordinate in [n, n + 1]; its corner count."""
    kept = _keep(polygon, count, axis, float(n), True, scratch)
    return _keep(scratch, kept, axis, float(n + 1), False, target)


@njit(cache=True, nogil=True)
def _add_column(
    piece: NDArray[np.float64],
    count: int,
    j: int,
    k: int,
    scratch: NDArray[np.float64],
    part: NDArray[np.float64],
    steps: NDArray[np.float64],
) -> None:
    """Add a polygon within one (j, k) column: all on its far side along i is inside."""
    size = steps.shape[0] - 1
    low, high = piece[0, 0], piece[0, 0]
    for n in range(1, count):
        low = min(low, piece[n, 0])
        high = max(high, piece[n, 0])
    if low < 0.0:
        # What lies before the grid counts in full from the first voxel on.
        kept = _keep(piece, count, 0, 0.0, False, part)
        _add_piece(part, kept, 0, j, k, True, steps)
    first = max(int(np.floor(low)), 0)
    last = min(max(int(np.ceil(high)) - 1, int(np.floor(low))), size - 1)
    for i in range(first, last + 1):
        if low >= i and high <= i + 1:
            _add_piece(piece, count, i, j, k, False, steps)
        else:
            kept = _slab(piece, count, 0, i, scratch, part)
            _add_piece(part, kept, i, j, k, False, steps)


@njit(cache=True, nogil=True)
def _add_piece(
    polygon: NDArray[np.float64],
    count: int,
    i: int,
    j: int,
    k: int,
    before: bool,
    steps: NDArray[np.float64],
) -> None:
    """Add one polygon that lies within voxel i of a column (or, if before, ahead of it)."""
    for n in range(1, count - 1):
        ju, ku = polygon[n, 1] - polygon[0, 1], polygon[n, 2] - polygon[0, 2]
        jv, kv = polygon[n + 1, 1] - polygon[0, 1], polygon[n + 1, 2] - polygon[0, 2]
        # A face that looks towards -i (negative projected area) is where i enters.
        area = -0.5 * (ju * kv - ku * jv)
        middle = (polygon[0, 0] + polygon[n, 0] + polygon[n + 1, 0]) / 3.0 - i
        if before:
            middle = 0.0
        steps[i, j, k] += area * (1.0 - middle)
        steps[i + 1, j, k] += area * middle


@njit(cache=True, nogil=True)
def _add_triangles(
    corners: NDArray[np.float64], faces: NDArray[np.int64], steps: NDArray[np.float64]
) -> None:
    """Cut every triangle into the grid's columns and add the pieces."""
    triangle = np.empty((_MAX_CORNERS, 3))
    scratch = np.empty((_MAX_CORNERS, 3))
    row = np.empty((_MAX_CORNERS, 3))
    piece = np.empty((_MAX_CORNERS, 3))
    part = np.empty((_MAX_CORNERS, 3))
    _, size_j, size_k = steps.shape
    for f in range(faces.shape[0]):
        for c in range(3):
            triangle[c] = corners[faces[f, c]]
        first_k, last_k = _span(triangle, 3, 2, size_k)
        for k in range(first_k, last_k + 1):
            n_row = _slab(triangle, 3, 2, k, scratch, row)
            if n_row < 3:
                continue
            first_j, last_j = _span(row, n_row, 1, size_j)
            for j in range(first_j, last_j + 1):
                n_piece = _slab(row, n_row, 1, j, scratch, piece)
                if n_piece >= 3:
                    _add_column(piece, n_piece, j, k, scratch, part, steps)


@njit(cache=True, nogil=True)
def _sum_along_i(steps: NDArray[np.float64], inside: NDArray[np.float32]) -> None:
    """Running sum along i, cut to [0, 1] and cleared of rounding."""
    size_i, size_j, size_k = inside.shape
    total = np.zeros((size_j, size_k))
    for i in range(size_i):
        for j in range(size_j):
            for k in range(size_k):
                total[j, k] += steps[i, j, k]
                value = total[j, k]
                if value < _ROUNDING:
                    value = 0.0
                elif value > 1.0 - _ROUNDING:
                    value = 1.0
                inside[i, j, k] = value


@njit(cache=True, nogil=True)
def _nearest_in_row(
    occupied: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Squared distance to, and k of, the nearest voxel of the same row that is not full."""
    size_i, size_j, size_k = occupied.shape
    squared = np.empty((size_i, size_j, size_k), dtype=np.float32)
    nearest = np.empty((size_i, size_j, size_k), dtype=np.int32)
    for i in range(size_i):
        for j in range(size_j):
            start = (i * size_j + j) * size_k
            seed = -1
            for k in range(size_k):
                if occupied[i, j, k] < 1.0:
                    seed = k
                nearest[i, j, k] = start + seed
                squared[i, j, k] = (k - seed) ** 2 if seed >= 0 else np.inf
            seed = -1
            for k in range(size_k - 1, -1, -1):
                if occupied[i, j, k] < 1.0:
                    seed = k
                if seed >= 0 and (seed - k) ** 2 < squared[i, j, k]:
                    nearest[i, j, k] = start + seed
                    squared[i, j, k] = (seed - k) ** 2
    return squared, nearest


@njit(cache=True, nogil=True)
def _lower_envelopes(squared: NDArray[np.float32], nearest: NDArray[np.int32]) -> None:
    """Spread squared distances and their seeds along the last axis, in place."""
    size_a, size_b, size = squared.shape
    height, seed = np.empty(size), np.empty(size, dtype=np.int32)
    apex, border = np.empty(size, dtype=np.int64), np.empty(size + 1)
    for a in range(size_a):
        for b in range(size_b):
            count = 0
            flat = True
            for q in range(size):
                height[q] = squared[a, b, q]
                seed[q] = nearest[a, b, q]
                flat = flat and height[q] == 0.0
                if np.isinf(height[q]):
                    continue
                # Drop the parabolas that this one hides.
                while count > 0:
                    p = apex[count - 1]
                    cross = (height[q] + q * q - height[p] - p * p) / (2.0 * (q - p))
                    if count > 1 and cross <= border[count - 1]:
                        count -= 1
                    else:
                        border[count] = cross
                        break
                apex[count] = q
                count += 1
            if flat or count == 0:
                continue
            n = 0
            for q in range(size):
                while n + 1 < count and border[n + 1] < q:
                    n += 1
                p = apex[n]
                squared[a, b, q] = (q - p) ** 2 + height[p]
                nearest[a, b, q] = seed[p]


@njit(cache=True, nogil=True)
def _refined(
    squared: NDArray[np.float32], nearest: NDArray[np.int32], occupied: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Distance to the surface itself: it lies within the nearest seed, as far as that is full."""
    depth = np.empty(occupied.size, dtype=np.float32)
    distance, seed, full = squared.ravel(), nearest.ravel(), occupied.ravel()
    for n in range(depth.size):
        if np.isinf(distance[n]):
            depth[n] = np.inf
        else:
            depth[n] = np.sqrt(distance[n]) + full[seed[n]] - 0.5
    return depth.reshape(occupied.shape)
