"""A surface again, with as many vertices as asked for: evenly spread, denser where it bends.

The surface is cut finely, its points are gathered into cells by weighted Lloyd iteration, and
the cells' middles are joined where three cells meet (approximated centroidal Voronoi diagrams:
Valette and Chassery, Computer Graphics Forum 2004;23:381). Where a surface bends twice as
much, the cells are half as large: the error of a flat triangle then is the same everywhere.
"""

from __future__ import annotations

import igl
import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from osteoprint.errors import InputError
from osteoprint.shape.distance import surface_points
from osteoprint.shape.surface_index import SurfaceIndex

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# So many points of the finely cut surface for each vertex of the new one.
FINENESS = 30
ROUNDS = 40
# Bending is judged over this part of the surface's area around a point.
PATCH = 1 / 250
# The densest part has so many times more vertices to the area than the flattest.
MOST_FOCUS = 4.0
ATTEMPTS = 5


def remeshed(surface: trimesh.Trimesh, count: int, *, seed: int = 0) -> trimesh.Trimesh:
    """`surface` with `count` vertices on it, in nearly equilateral triangles.

    Parameters
    ----------
    surface : one closed manifold surface, mm, any frame.
    count : number of vertices.
    seed : where the first of them are dropped.

    Returns
    -------
    A closed manifold of the same genus, in the same frame.

    Raises
    ------
    InputError : `surface` is empty or not closed, or `count` is too small for its shape.
    """
    index = SurfaceIndex.build(surface)
    if not surface.is_watertight:
        raise InputError("surface", "is not closed", "close its holes first")
    if count < 100:
        raise InputError("count", f"is {count}", "ask for at least 100 vertices")
    points, faces = _finely_cut(surface, FINENESS * count)
    bend = _bending(index, points)
    area = _shares(points, faces)
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng([seed, attempt])
        labels, middles = _cells(points, area, bend, count, rng)
        mesh = _joined(faces, _whole(faces, labels, count), middles)
        if mesh.is_watertight and mesh.euler_number == surface.euler_number and _simple(mesh):
            mesh.vertices = index.nearest(np.array(mesh.vertices))[1]
            if mesh.volume < 0:
                mesh.invert()
            return mesh
    raise InputError("count", f"{count} vertices do not make a closed surface", "ask for more")


def _finely_cut(surface: trimesh.Trimesh, least: int) -> tuple[Floats, Ints]:
    """Points and triangles of `surface`, its triangles cut into four until there are enough."""
    points, faces = np.array(surface.vertices), np.array(surface.faces, np.int64)
    while len(points) < least:
        points, faces = trimesh.remesh.subdivide(points, faces)
    return np.ascontiguousarray(points), np.ascontiguousarray(faces, dtype=np.int64)


def _shares(points: Floats, faces: Ints) -> Floats:
    """(n,) mm^2, a third of the triangles around each point."""
    areas = np.asarray(igl.doublearea(points, faces), dtype=np.float64) / 2
    shares = np.bincount(faces.ravel(), np.repeat(areas / 3, 3), len(points))
    return np.asarray(shares, dtype=np.float64)


def _bending(index: SurfaceIndex, points: Floats) -> Floats:
    """(n,) from 1 where the surface is flattest to MOST_FOCUS where it bends most."""
    samples = surface_points(index, 20_000)
    triangles = index.vertices[index.faces]
    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    at = normals[index.nearest(samples)[2]]
    tree = cKDTree(samples)
    patches = tree.query(samples, round(PATCH * len(samples)))[1]
    # Normals that point different ways shorten their mean: by the square of the curvature.
    bend = np.sqrt(np.maximum(1 - np.linalg.norm(at[patches].mean(axis=1), axis=1), 1e-12))
    bend = bend[patches].mean(axis=1)
    bend = np.clip(bend / np.percentile(bend, 25), 1.0, MOST_FOCUS)
    return np.asarray(bend[tree.query(points)[1]])


def _cells(
    points: Floats, area: Floats, bend: Floats, count: int, rng: np.random.Generator
) -> tuple[Ints, Floats]:
    """The cell of each point, (n,), and the middles of the cells, (count, 3)."""
    share = area * bend
    middles = points[rng.choice(len(points), count, replace=False, p=share / share.sum())]
    # The density of a centroidal diagram's cells is the square root of its weights'.
    mass = area * bend**2
    for _ in range(ROUNDS):
        labels = cKDTree(middles).query(points, workers=2)[1]
        total = np.bincount(labels, mass, count)
        moved = np.stack([np.bincount(labels, mass * c, count) for c in points.T], axis=1)
        kept = total > 0
        middles[kept] = moved[kept] / total[kept, None]
    return np.asarray(cKDTree(middles).query(points, workers=2)[1], np.int64), middles


def _whole(faces: Ints, labels: Ints, count: int) -> Ints:
    """(n,) `labels` with every cell in one piece: scattered bits go to a cell beside them."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    inside = edges[labels[edges[:, 0]] == labels[edges[:, 1]]]
    ones = np.ones(len(inside), np.int8)
    graph = sparse.coo_matrix((ones, inside.T), (len(labels), len(labels)))
    _, piece = connected_components(graph, directed=False)
    sizes = np.bincount(piece)
    label_of = np.empty(len(sizes), np.int64)
    label_of[piece] = labels
    largest = np.zeros(count, np.int64)
    np.maximum.at(largest, label_of, sizes)
    labels = np.where(sizes[piece] == largest[labels], labels, -1)
    while (labels < 0).any():
        both = np.concatenate([edges, edges[:, ::-1]])
        open_ = both[(labels[both[:, 0]] < 0) & (labels[both[:, 1]] >= 0)]
        if not len(open_):
            break
        labels[open_[:, 0]] = labels[open_[:, 1]]
    return labels


def _joined(faces: Ints, labels: Ints, middles: Floats) -> trimesh.Trimesh:
    """The triangles between the middles of cells that meet, three by three."""
    corners = labels[faces]
    meet = (
        (corners[:, 0] != corners[:, 1])
        & (corners[:, 1] != corners[:, 2])
        & (corners[:, 2] != corners[:, 0])
    )
    corners = corners[meet]
    # Each triangle once, whichever corner it begins with; its winding is kept.
    first = corners.argmin(axis=1)[:, None]
    corners = np.unique(np.take_along_axis(corners, (first + np.arange(3)) % 3, axis=1), axis=0)
    mesh = trimesh.Trimesh(middles, corners, process=False)
    mesh.remove_unreferenced_vertices()
    return mesh


def _simple(mesh: trimesh.Trimesh) -> bool:
    """True if every edge has two faces, wound consistently, and the surface is in one piece."""
    return (
        len(mesh.edges) == 2 * len(mesh.edges_unique)
        and bool(mesh.is_winding_consistent)
        and mesh.body_count == 1
    )
