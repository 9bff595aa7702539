"""A surface cut into triangles that are small enough to measure distances at their corners."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from osteoprint.shape.surface_index import SurfaceIndex

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# The longest edge of the quadrature, as a part of the size of the surface.
SPACING = 0.01


@njit(cache=True, nogil=True, error_model="numpy")
def _longest_edges(corners: Floats) -> Floats:
    """(m,) longest edge of each triangle of (m, 9) corners."""
    longest = np.empty(len(corners))
    for t in range(len(corners)):
        most = 0.0
        for k in range(3):
            edge2 = 0.0
            for x in range(3):
                edge2 += (corners[t, 3 * k + x] - corners[t, (3 * k + 3 + x) % 9]) ** 2
            most = max(most, edge2)
        longest[t] = np.sqrt(most)
    return longest


@njit(cache=True, nogil=True, error_model="numpy")
def first_seen(faces: Ints, count: int) -> tuple[Ints, Ints]:
    """The vertices in the order in which `faces` name them, and the faces so renumbered."""
    number = np.full(count, -1, np.int64)
    seen = np.empty(count, np.int64)
    renumbered = np.empty_like(faces)
    new = 0
    for t in range(len(faces)):
        for k in range(3):
            vertex = faces[t, k]
            if number[vertex] < 0:
                number[vertex] = new
                seen[new] = vertex
                new += 1
            renumbered[t, k] = number[vertex]
    return seen[:new].copy(), renumbered


def even_mesh(surface: SurfaceIndex) -> tuple[Floats, Ints]:
    """Points and triangles of `surface`, the triangles cut until no edge is too long.

    In the order of the search tree, so that points which follow each other are neighbours.
    """
    longest = _longest_edges(surface.corners)
    # Room for rounding, or an edge of exactly that length would be cut in one pose only.
    pieces = np.ceil(longest / (SPACING * surface.size_mm) - 1e-9).astype(np.int64)
    whole = surface.faces[surface.order[pieces <= 1]]
    seen, renumbered = first_seen(whole, len(surface.vertices))
    all_points = [surface.vertices[seen]]
    all_faces = [renumbered]
    count = len(seen)
    for n in np.unique(pieces[pieces > 1]):
        weights, parts = _cut_triangle(int(n))
        cut = np.matmul(weights, surface.corners[pieces == n].reshape(-1, 3, 3))
        offsets = count + len(weights) * np.arange(len(cut))
        all_points.append(cut.reshape(-1, 3))
        all_faces.append((offsets[:, None, None] + parts).reshape(-1, 3))
        count += len(cut) * len(weights)
    return np.concatenate(all_points), np.concatenate(all_faces)


def _cut_triangle(n: int) -> tuple[Floats, Ints]:
    """A triangle with each edge cut into n: (k, 3) barycentric points, (n * n, 3) parts."""
    number: dict[tuple[int, int], int] = {}
    for i in range(n + 1):
        for j in range(n + 1 - i):
            number[i, j] = len(number)
    weights = np.array([[n - i - j, i, j] for i, j in number], dtype=np.float64) / n
    parts = []
    for i in range(n):
        for j in range(n - i):
            parts.append([number[i, j], number[i + 1, j], number[i, j + 1]])
            if i + j < n - 1:
                parts.append([number[i + 1, j], number[i + 1, j + 1], number[i, j + 1]])
    return weights, np.array(parts, dtype=np.int64)
