"""The point of a surface nearest to any other point, asked many thousand times.

A balanced binary tree of boxes over the triangles. Points are best asked in an order in
which neighbours follow each other: each query starts from the triangle that was nearest
to the point before, which leaves little to search. Threads, not processes, share the
work; the kernels release the interpreter's lock and are safe to call from several.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import trimesh
from numba import njit
from numpy.typing import NDArray

from osteoprint.errors import InputError
from osteoprint.shape.nearest_triangle import search_each, search_together, touch

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEAF_TRIANGLES = 8
# Below this part of the bounding-box diagonal a distance is rounding, and becomes 0.
ROUNDING = 1e-12
POINTS_PER_THREAD = 2000
# Points share a search within so many times the root of a triangle's mean area.
TOGETHER = 20.0


@dataclass(frozen=True, eq=False)
class SurfaceIndex:
    """A triangle mesh made ready for nearest-point queries; build it once, ask it often.

    Attributes
    ----------
    vertices : (n, 3) float64, mm.
    faces : (m, 3) int64; triangles without area are left out.
    areas : (m,) float64, mm^2.
    diagonal_mm : diagonal of the bounding box of the triangles.
    size_mm : twice the greatest distance from their middle; no rotation changes it.
    order : (m,) faces in the order of the tree: neighbours in it are neighbours in space.
    places : (m,) where each face stands in that order.
    corners : (m, 9) float64, the triangles in that order.
    boxes : (k, 6) low and high corner of each node; the children of i are 2i + 1, 2i + 2.
    ranges : (k, 2) which part of ``order`` belongs to each node.
    """

    vertices: Floats
    faces: Ints
    areas: Floats
    diagonal_mm: float
    size_mm: float
    order: Ints
    places: Ints
    corners: Floats
    boxes: Floats
    ranges: Ints

    @classmethod
    def build(cls, mesh: trimesh.Trimesh, source: str = "surface") -> SurfaceIndex:
        """The index of `mesh` (mm, any frame). `source` is its name in messages.

        Raises InputError if the mesh is empty, without area, or not finite.
        """
        vertices = np.ascontiguousarray(mesh.vertices, dtype=np.float64)
        faces = np.ascontiguousarray(mesh.faces, dtype=np.int64).reshape(-1, 3)
        if len(faces) == 0:
            raise InputError(source, "has no triangles", "give a surface, not an empty mesh")
        if faces.min() < 0 or faces.max() >= len(vertices):
            raise InputError(source, "has faces that name no vertex", "repair the mesh")
        areas, centres, low, high = _measure(vertices, faces)
        if not np.isfinite(centres).all():
            raise InputError(source, "has vertices that are not finite", "repair the mesh")
        diagonal = float(np.linalg.norm(high - low))
        good = areas > 1e-15 * diagonal**2
        if not good.any():
            raise InputError(source, "has no area", "give a surface, not points or lines")
        if not good.all():
            faces, centres, areas = faces[good], centres[good], areas[good]
        order, ranges = _split(centres, LEAF_TRIANGLES)
        ordered = np.take(vertices, np.take(faces, order, axis=0), axis=0).reshape(-1, 9)
        boxes = _enclose(ordered, ranges)
        middle = np.average(centres, axis=0, weights=areas)
        size = 2 * float(np.sqrt(_farthest_square(ordered, middle)))
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        return cls(vertices, faces, areas, diagonal, size, order, places, ordered, boxes, ranges)

    def nearest(self, points: Floats, hints: Ints | None = None) -> tuple[Floats, Floats, Ints]:
        """The nearest surface point of each of `points`.

        Parameters
        ----------
        points : (k, 3) mm, in the frame of the mesh.
        hints : (k,) faces that may be near, from an earlier answer; only speed depends on them.

        Returns
        -------
        (k,) distances in mm, (k, 3) nearest points, (k,) faces they lie on.
        """
        points = np.ascontiguousarray(points, dtype=np.float64).reshape(-1, 3)
        if not np.isfinite(points).all():
            raise InputError("points", "are not all finite", "repair the surface they are from")
        places = np.full(len(points), -1, dtype=np.int64)
        if hints is not None:
            places = self.places[hints]
        distances, spots = self._ask(points, places, hinted=hints is not None)
        nearest = touch(points, self.corners, spots)
        return distances, nearest, self.order[spots]

    def _ask(self, points: Floats, places: Ints, *, hinted: bool) -> tuple[Floats, Ints]:
        """Distances and places in `corners`, in as many threads as are worth it."""
        distances = np.empty(len(points))
        spots = places.copy()
        threads = min(os.cpu_count() or 1, 1 + len(points) // POINTS_PER_THREAD)
        cuts = np.linspace(0, len(points), threads + 1).astype(int)
        reach = TOGETHER * float(np.sqrt(self.areas.mean()))

        def run(lo: int, hi: int) -> None:
            part = slice(lo, hi)
            tree = (points[part], self.corners, self.boxes, self.ranges)
            if hinted:
                search_each(*tree, spots[part], distances[part])
            else:
                search_together(*tree, reach, spots[part], distances[part])

        if threads == 1:
            run(0, len(points))
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(run, cuts[:-1], cuts[1:]))
        distances[distances < ROUNDING * self.diagonal_mm] = 0.0
        return distances, spots


def barycentric(triangles: Floats, points: Floats) -> Floats:
    """(k, 3) weights of the corners of (k, 3, 3) triangles that make (k, 3) points on them.

    Not negative, of sum 1. See Ericson, Real-Time Collision Detection (2005), 3.4.
    """
    ab, ac = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    ap = points - triangles[:, 0]
    bb, bc, cc = (ab * ab).sum(axis=1), (ab * ac).sum(axis=1), (ac * ac).sum(axis=1)
    pb, pc = (ap * ab).sum(axis=1), (ap * ac).sum(axis=1)
    area = np.maximum(bb * cc - bc * bc, 1e-300)
    second, third = (cc * pb - bc * pc) / area, (bb * pc - bc * pb) / area
    weights = np.clip(np.stack([1 - second - third, second, third], axis=1), 0.0, 1.0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


@njit(cache=True, nogil=True, error_model="numpy")
def _measure(vertices: Floats, faces: Ints) -> tuple[Floats, Floats, Floats, Floats]:
    """(m,) areas and (m, 3) centres of the triangles, and the corners of their common box."""
    areas, centres = np.empty(len(faces)), np.empty((len(faces), 3))
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for t in range(len(faces)):
        a, b, c = vertices[faces[t, 0]], vertices[faces[t, 1]], vertices[faces[t, 2]]
        square = 0.0
        for k in range(3):
            i, j = (k + 1) % 3, (k + 2) % 3
            normal = (b[i] - a[i]) * (c[j] - a[j]) - (b[j] - a[j]) * (c[i] - a[i])
            square += normal * normal
            centres[t, k] = (a[k] + b[k] + c[k]) / 3
            low[k] = min(low[k], a[k], b[k], c[k])
            high[k] = max(high[k], a[k], b[k], c[k])
        areas[t] = np.sqrt(square) / 2
    return areas, centres, low, high


@njit(cache=True, nogil=True, error_model="numpy")
def _farthest_square(corners: Floats, middle: Floats) -> float:
    """Largest squared distance of the corners (m, 9) from `middle` (3,)."""
    farthest = 0.0
    for t in range(len(corners)):
        for k in range(0, 9, 3):
            x, y, z = corners[t, k], corners[t, k + 1], corners[t, k + 2]
            gap = (x - middle[0]) ** 2 + (y - middle[1]) ** 2 + (z - middle[2]) ** 2
            farthest = max(farthest, gap)
    return farthest


@njit(cache=True, nogil=True, error_model="numpy")
def _split(centres: Floats, leaf: int) -> tuple[Ints, Ints]:
    """Halve the triangles along their longest side, again and again: order and ranges."""
    count = len(centres)
    depth = 0
    while (count + (1 << depth) - 1) >> depth > leaf:
        depth += 1
    nodes = (1 << (depth + 1)) - 1
    at = centres.copy()
    order = np.arange(count)
    ranges = np.empty((nodes, 2), np.int64)
    ranges[0, 0], ranges[0, 1] = 0, count
    for node in range(nodes // 2):
        start, end = ranges[node, 0], ranges[node, 1]
        axis, longest = 0, -1.0
        for k in range(3):
            low, high = np.inf, -np.inf
            for i in range(start, end):
                low, high = min(low, at[i, k]), max(high, at[i, k])
            if high - low > longest:
                axis, longest = k, high - low
        middle = (start + end) // 2
        _select(at, order, axis, start, end - 1, middle)
        ranges[2 * node + 1, 0], ranges[2 * node + 1, 1] = start, middle
        ranges[2 * node + 2, 0], ranges[2 * node + 2, 1] = middle, end
    return order, ranges


@njit(cache=True, nogil=True, error_model="numpy")
def _select(at: Floats, order: Ints, axis: int, left: int, right: int, rank: int) -> None:
    """Hoare's selection: part left..right around `rank`, as sorting by at[:, axis] would."""
    while left < right:
        pivot = at[(left + right) // 2, axis]
        i, j = left, right
        while i <= j:
            while at[i, axis] < pivot:
                i += 1
            while at[j, axis] > pivot:
                j -= 1
            if i <= j:
                order[i], order[j] = order[j], order[i]
                for k in range(3):
                    at[i, k], at[j, k] = at[j, k], at[i, k]
                i += 1
                j -= 1
        if rank <= j:
            right = j
        elif rank >= i:
            left = i
        else:
            return


@njit(cache=True, nogil=True, error_model="numpy")
def _enclose(corners: Floats, ranges: Ints) -> Floats:
    """(k, 6) boxes of the tree's nodes, from the leaves up."""
    nodes = len(ranges)
    boxes = np.empty((nodes, 6))
    boxes[:, :3] = np.inf
    boxes[:, 3:] = -np.inf
    for node in range(nodes - 1, -1, -1):
        if node >= nodes // 2:
            for i in range(ranges[node, 0], ranges[node, 1]):
                for k in range(9):
                    boxes[node, k % 3] = min(boxes[node, k % 3], corners[i, k])
                    boxes[node, 3 + k % 3] = max(boxes[node, 3 + k % 3], corners[i, k])
        else:
            for k in range(3):
                boxes[node, k] = min(boxes[2 * node + 1, k], boxes[2 * node + 2, k])
                boxes[node, 3 + k] = max(boxes[2 * node + 1, 3 + k], boxes[2 * node + 2, 3 + k])
    return boxes
