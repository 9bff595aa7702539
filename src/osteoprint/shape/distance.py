"""How far one surface lies from another: RMS, mean, 95th percentile, Hausdorff.

Distances run from points of one surface to the nearest point of the other *surface* (not
to its nearest vertex) and are integrated over area, so that neither triangulation counts.

The quadrature: large triangles are cut until none is longer than 1 % of the surface's size
(twice its greatest distance from its middle, which no rotation changes). Where the
distance is smooth over a triangle, as its gradients at the corners tell, it is integrated
from these and the values there; elsewhere (near a crossing of the surfaces, a sharp edge,
or a corner that lies on the other surface) the triangle is cut into four, each with the
rule of second degree on its corners and middle.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import trimesh
from numba import njit
from numpy.typing import NDArray

from osteoprint.shape.surface_index import SurfaceIndex

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# The longest edge of the quadrature, as a part of the size of the surface.
SPACING = 0.01
# How much a bent gradient may hide in a triangle, as a part of the RMS. At 1 RMS and mean are
# within 0.25 % of a dense sampling, for surfaces far apart, close, rough, and decimated.
HIDDEN = 1.0
# The seven further points of a triangle cut into four: the middles of its edges, then of
# its parts. Weights of the second-degree rule (1/12 per corner, 3/4 in the middle).
FINE_POINTS = (
    np.array(
        [[3, 3, 0], [0, 3, 3], [3, 0, 3], [4, 1, 1], [1, 4, 1], [1, 1, 4], [2, 2, 2]],
        dtype=np.float64,
    )
    / 6
)
FINE_WEIGHTS = np.array([1, 1, 1, 3, 3, 3, 3]) / 16
FINE_CORNER_WEIGHT = 1 / 48


@dataclass(frozen=True)
class DirectedDistance:
    """Distances from one surface to another, weighted by area; all in mm."""

    rms_mm: float
    mean_mm: float
    hd95_mm: float
    hausdorff_mm: float


@dataclass(frozen=True)
class SurfaceDistance:
    """Distances between two surfaces, both ways.

    The symmetric RMS, mean and 95th percentile are those of both surfaces' area pooled,
    every mm^2 counting the same; the symmetric Hausdorff distance is the larger of the two.

    Attributes
    ----------
    estimate_to_truth, truth_to_estimate : the two directions.
    rms_mm, mean_mm, hd95_mm, hausdorff_mm : symmetric.
    diagonal_mm : bounding-box diagonal of the truth.
    """

    estimate_to_truth: DirectedDistance
    truth_to_estimate: DirectedDistance
    rms_mm: float
    mean_mm: float
    hd95_mm: float
    hausdorff_mm: float
    diagonal_mm: float

    @property
    def rms_relative(self) -> float:
        """RMS as a part of the truth's bounding-box diagonal."""
        return self.rms_mm / self.diagonal_mm

    @property
    def hausdorff_relative(self) -> float:
        """Hausdorff distance as a part of the truth's bounding-box diagonal."""
        return self.hausdorff_mm / self.diagonal_mm

    def to_json(self) -> dict[str, Any]:
        """What ``compare --json`` prints: plain numbers by name."""
        return {
            "rms_mm": self.rms_mm,
            "mean_mm": self.mean_mm,
            "hd95_mm": self.hd95_mm,
            "hausdorff_mm": self.hausdorff_mm,
            "rms_relative": self.rms_relative,
            "hausdorff_relative": self.hausdorff_relative,
            "estimate_to_truth": asdict(self.estimate_to_truth),
            "truth_to_estimate": asdict(self.truth_to_estimate),
        }


def surface_distance(
    estimate: trimesh.Trimesh | SurfaceIndex, truth: trimesh.Trimesh | SurfaceIndex
) -> SurfaceDistance:
    """Point-to-surface distances between `estimate` and `truth`, both ways, by area.

    Both in mm and in one frame; nothing is aligned here (see ``alignment.align_rigid``).
    Either may be an index that was built before.

    Raises
    ------
    InputError : a surface is empty, without area, or not finite.
    """
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(_indexed, (estimate, truth), ("estimate", "truth"))
        there, back = pool.map(_integrate, (first, second), (second, first))
    both = _Field(
        np.concatenate([there.distances, back.distances]),
        np.concatenate([there.weights, back.weights]),
        there.integral + back.integral,
        there.square_integral + back.square_integral,
    )
    pooled = both.reduce()
    return SurfaceDistance(
        estimate_to_truth=there.reduce(),
        truth_to_estimate=back.reduce(),
        rms_mm=pooled.rms_mm,
        mean_mm=pooled.mean_mm,
        hd95_mm=pooled.hd95_mm,
        hausdorff_mm=pooled.hausdorff_mm,
        diagonal_mm=second.diagonal_mm,
    )


def vertex_distances(
    estimate: trimesh.Trimesh | SurfaceIndex, truth: trimesh.Trimesh | SurfaceIndex
) -> Floats:
    """(n,) mm, from each vertex of `estimate` to the surface of `truth`: for colour maps.

    Raises InputError as :func:`surface_distance` does.
    """
    first = _indexed(estimate, "estimate")
    return _indexed(truth, "truth").nearest(first.vertices)[0]


def rms_between(points: Floats, truth: SurfaceIndex) -> float:
    """RMS distance in mm from (k, 3) points, each counting the same, to a surface.

    With :func:`surface_points` the quick way to one direction of a matrix of distances;
    4,000 points give a femur's RMS to about 1 %.
    """
    return float(np.sqrt(np.mean(truth.nearest(points)[0] ** 2)))


def surface_points(surface: SurfaceIndex, count: int) -> Floats:
    """(count, 3) points on a surface, mm, each standing for the same area.

    Spread evenly and without chance: equal steps of area along the triangles in the order
    of the search tree, and within a triangle the R2 sequence (Roberts 2018).
    """
    area = np.cumsum(surface.areas[surface.order])
    steps = (np.arange(count) + 0.5) * (area[-1] / count)
    places = np.minimum(np.searchsorted(area, steps), len(area) - 1)
    # Plastic number: the two-dimensional counterpart of the golden ratio.
    plastic = 1.32471795724474602596
    uv = np.modf(0.5 + np.arange(count)[:, None] / np.array([plastic, plastic**2]))[0]
    uv = np.where(uv.sum(axis=1, keepdims=True) > 1, 1 - uv, uv)
    a, b, c = np.moveaxis(surface.corners[places].reshape(-1, 3, 3), 1, 0)
    return np.asarray(a + uv[:, :1] * (b - a) + uv[:, 1:] * (c - a))


def _indexed(surface: trimesh.Trimesh | SurfaceIndex, name: str) -> SurfaceIndex:
    return surface if isinstance(surface, SurfaceIndex) else SurfaceIndex.build(surface, name)


@dataclass(frozen=True, eq=False)
class _Field:
    """Distances at points of a surface: (k,) mm, (k,) the mm^2 each stands for, and the
    integrals of the distance, mm^3, and of its square, mm^4."""

    distances: Floats
    weights: Floats
    integral: float
    square_integral: float

    def reduce(self) -> DirectedDistance:
        """RMS, mean, 95th percentile and maximum."""
        area = self.weights.sum()
        order = np.argsort(self.distances)
        below = np.cumsum(self.weights[order])
        rank = min(int(np.searchsorted(below, 0.95 * below[-1])), len(order) - 1)
        return DirectedDistance(
            rms_mm=float(np.sqrt(self.square_integral / area)),
            mean_mm=float(self.integral / area),
            hd95_mm=float(self.distances[order[rank]]),
            hausdorff_mm=float(self.distances[order[-1]]),
        )


def _integrate(start: SurfaceIndex, goal: SurfaceIndex) -> _Field:
    """The distance to `goal` over the surface of `start`."""
    points, faces = _even_mesh(start)
    distances, nearest, _ = goal.nearest(points)
    area, means, squares, hidden = _smooth_rule(points, faces, distances, nearest)
    fine = hidden >= HIDDEN * np.sqrt(squares.sum() / area.sum())

    extra = np.matmul(FINE_POINTS, points[faces[fine]]).reshape(-1, 3)
    extra_distances = goal.nearest(extra)[0]
    extra_weights = np.outer(area[fine], FINE_WEIGHTS).ravel()
    per_corner = area * np.where(fine, FINE_CORNER_WEIGHT, 1 / 3)
    weights = np.bincount(faces.ravel(), np.repeat(per_corner, 3), minlength=len(points))

    at_corners = distances[faces[fine]]
    corner_weights = FINE_CORNER_WEIGHT * area[fine]
    integral = means[~fine].sum() + corner_weights @ at_corners.sum(axis=1)
    square_integral = squares[~fine].sum() + corner_weights @ (at_corners**2).sum(axis=1)
    return _Field(
        np.concatenate([distances, extra_distances]),
        np.concatenate([weights, extra_weights]),
        float(integral + extra_weights @ extra_distances),
        float(square_integral + extra_weights @ extra_distances**2),
    )


@njit(cache=True, nogil=True, error_model="numpy")
def _smooth_rule(
    points: Floats, faces: Ints, distances: Floats, nearest: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """Per triangle: area, integrals of the distance and of its square, and doubt.

    Distances at the middles of the edges follow from values and gradients at their ends
    (Hermite); the rule on these middles is of second degree. The doubt, in mm, is what a
    change of gradient may hide: infinite where a corner lies on the other surface, because
    the distance has no gradient there.
    """
    area, means = np.empty(len(faces)), np.empty(len(faces))
    squares, hidden = np.empty(len(faces)), np.empty(len(faces))
    edge2 = np.zeros(3)
    # At a kink Hermite overshoots a little: never beyond what was measured.
    most = distances.max()
    for t in range(len(faces)):
        bend2, mean, square, touching = 0.0, 0.0, 0.0, False
        for k in range(3):
            i, j = faces[t, k], faces[t, (k + 1) % 3]
            touching |= distances[i] == 0.0
            bent2, bow = 0.0, 0.0
            edge2[k] = 0.0
            for x in range(3):
                turn = (points[i, x] - nearest[i, x]) / distances[i]
                turn -= (points[j, x] - nearest[j, x]) / distances[j]
                along = points[j, x] - points[i, x]
                bent2 += turn * turn
                bow += turn * along
                edge2[k] += along * along
            bend2 = max(bend2, bent2)
            middle = (distances[i] + distances[j]) / 2 + bow / 8
            middle = min(max(middle, 0.0), most)
            mean += middle / 3
            square += middle * middle / 3
        # Heron, by squares of the edges.
        heron = 2 * (edge2[0] * edge2[1] + edge2[1] * edge2[2] + edge2[2] * edge2[0])
        heron -= edge2[0] ** 2 + edge2[1] ** 2 + edge2[2] ** 2
        area[t] = np.sqrt(max(heron, 0.0)) / 4
        means[t] = 0.0 if touching else area[t] * mean
        squares[t] = 0.0 if touching else area[t] * square
        hidden[t] = np.inf if touching else np.sqrt(bend2 * edge2.max())
    return area, means, squares, hidden


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
def _first_seen(faces: Ints, count: int) -> tuple[Ints, Ints]:
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


def _even_mesh(surface: SurfaceIndex) -> tuple[Floats, Ints]:
    """Points and triangles of `surface`, the triangles cut until no edge is too long.

    In the order of the search tree, so that points which follow each other are neighbours.
    """
    longest = _longest_edges(surface.corners)
    # Room for rounding, or an edge of exactly that length would be cut in one pose only.
    pieces = np.ceil(longest / (SPACING * surface.size_mm) - 1e-9).astype(np.int64)
    whole = surface.faces[surface.order[pieces <= 1]]
    seen, renumbered = _first_seen(whole, len(surface.vertices))
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
