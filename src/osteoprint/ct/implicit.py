"""Shapes as signed distances (negative inside, mm), blended, then meshed.

Only what bones need: spheres, ellipsoids, tapered capsules, rolled condyles, tubes with
a free cross-section, the blends between them, and the way from a field to a closed mesh.
Coordinates are three arrays that broadcast against each other. Some distances are
approximate away from the surface; the surface itself, where they are zero, is exact.

Source of the capsules and the polynomial blends: I. Quilez, "Distance functions" and
"Smooth minimum", written anew here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from skimage.measure import marching_cubes

from osteoprint.errors import InputError
from osteoprint.frames import Side

Field = NDArray[np.float64]
Point = tuple[float, float, float]
Coordinates = tuple[Field, Field, Field]


def blend(a: Field, b: Field, width_mm: float) -> Field:
    """Union of two shapes with a fillet about `width_mm` wide."""
    h = np.maximum(width_mm - np.abs(a - b), 0.0)
    return np.asarray(np.minimum(a, b) - h * h / (4.0 * width_mm))


def carve(a: Field, b: Field, width_mm: float) -> Field:
    """Shape `a` without shape `b`, the rim rounded over about `width_mm`."""
    return np.asarray(-blend(-a, b, width_mm))


def ramp(value: Field, low: float, high: float) -> Field:
    """0 below low, 1 above high, smooth between."""
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return np.asarray(t * t * (3 - 2 * t))


def sphere(at: Coordinates, centre: Point, radius: float) -> Field:
    """Distance to a sphere."""
    x, y, z = (c - o for c, o in zip(at, centre))
    return np.asarray(np.sqrt(x * x + y * y + z * z) - radius)


def ellipsoid(at: Coordinates, centre: Point, radii: Point) -> Field:
    """Approximate distance to an ellipsoid along the axes."""
    near = np.zeros(())
    steep = np.zeros(())
    for c, o, r in zip(at, centre, radii):
        u = (c - o) / r
        near = near + u * u
        steep = steep + (u / r) ** 2
    k = np.sqrt(near)
    return np.asarray(k * (k - 1.0) / np.maximum(np.sqrt(steep), 1e-9))


def capsule(at: Coordinates, start: Point, end: Point, radii: tuple[float, float]) -> Field:
    """Distance to a rod with round ends whose radius changes evenly from start to end."""
    d = np.subtract(end, start)
    x, y, z = (c - o for c, o in zip(at, start))
    t = np.clip((x * d[0] + y * d[1] + z * d[2]) / (d @ d), 0.0, 1.0)
    away = np.sqrt((x - t * d[0]) ** 2 + (y - t * d[1]) ** 2 + (z - t * d[2]) ** 2)
    return np.asarray(away - (radii[0] + t * (radii[1] - radii[0])))


def two_circles(
    u: Field, v: Field, first: tuple[float, float, float], second: tuple[float, float, float]
) -> Field:
    """Distance in a plane to the convex hull of two circles (u, v, radius)."""
    du, dv = second[0] - first[0], second[1] - first[1]
    span = float(np.hypot(du, dv))
    along = ((u - first[0]) * du + (v - first[1]) * dv) / span
    across = np.abs((u - first[0]) * dv - (v - first[1]) * du) / span
    slope = (first[2] - second[2]) / span
    run = np.sqrt(1.0 - slope * slope)
    # Which of circle, tangent, circle is nearest follows from the foot on the tangent.
    foot = run * along - slope * across
    return np.asarray(
        np.where(
            foot < 0,
            np.hypot(across, along) - first[2],
            np.where(
                foot > run * span,
                np.hypot(across, along - span) - second[2],
                run * across + slope * along - first[2],
            ),
        )
    )


def extruded(outline: Field, offset: Field, half_width: float, rounding: float) -> Field:
    """A plane outline given thickness: |offset| <= half_width, edges rounded."""
    a = outline + rounding
    b = np.abs(offset) - half_width + rounding
    outside = np.sqrt(np.maximum(a, 0.0) ** 2 + np.maximum(b, 0.0) ** 2)
    return np.asarray(np.minimum(np.maximum(a, b), 0.0) + outside - rounding)


def grid_points(low: Point, high: Point, step_mm: float) -> Coordinates:
    """Open (I,1,1), (1,J,1), (1,1,K) coordinates that cover a box."""
    axes = [
        np.float64(a) + step_mm * np.arange(int(np.ceil((b - a) / step_mm)) + 1)
        for a, b in zip(low, high)
    ]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    return np.asarray(x), np.asarray(y), np.asarray(z)


def surface(
    field: Callable[[Coordinates], Field], low: Point, high: Point, step_mm: float, name: str
) -> trimesh.Trimesh:
    """The zero level of a field within a box as one closed, outward mesh without handles.

    Raises InputError, naming `name`, if the shape reaches the box's wall or is not one
    simple body, as parameters far from any bone's can make it.
    """
    at = grid_points(low, high, step_mm)
    values = field(at).astype(np.float32)
    # A value near zero would put several vertices on one grid point, and slivers between.
    near = np.float32(0.03 * step_mm)
    values = np.where(np.abs(values) < near, np.where(values < 0, -near, near), values)
    walls = (values[[0, -1]], values[:, [0, -1]], values[:, :, [0, -1]])
    fix = "use parameters closer to a real bone's"
    if min(float(w.min()) for w in walls) <= 0 or float(values.min()) >= 0:
        raise InputError(name, "the shape does not fit into its box", fix)
    vertices, faces, _, _ = marching_cubes(values, 0.0, gradient_direction="ascent")
    vertices = vertices.astype(np.float64) * step_mm + np.asarray(low)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    if mesh.volume < 0:
        mesh.invert()
    if mesh.body_count > 1:
        mesh = max(mesh.split(only_watertight=True), key=lambda body: float(body.volume))
    if not mesh.is_watertight or mesh.euler_number != 2:
        raise InputError(name, "the shape is not one simple closed body", fix)
    return _smoothed(mesh)


def _smoothed(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """Two rounds of Taubin's smoothing: evens out slivers without shrinking.

    Source: G. Taubin, "A signal processing approach to fair surface design", 1995.
    """
    edges = mesh.edges_unique
    both = np.concatenate([edges, edges[:, ::-1]])
    count = len(mesh.vertices)
    near = csr_matrix((np.ones(len(both)), (both[:, 0], both[:, 1])), shape=(count, count))
    degree = np.asarray(near.sum(axis=1))
    vertices = mesh.vertices.view(np.ndarray).copy()
    for step in (0.5, -0.53) * 2:
        vertices += step * (near @ vertices / degree - vertices)
    return trimesh.Trimesh(vertices, mesh.faces, process=False)


def undulate(
    mesh: trimesh.Trimesh,
    seed: int,
    bump_mm: float,
    sway_mm: float,
    unit_mm: float,
) -> NDArray[np.float64]:
    """(n, 3) vertices moved by smooth random fields: what makes two bones of one size differ.

    `bump_mm` is the RMS along the normals at wavelengths of 0.7 to 4 units, `sway_mm` the
    RMS per axis of a displacement at 6 to 16 units, which bends without roughening.
    """
    rng = np.random.default_rng(seed)
    vertices, normals = mesh.vertices.view(np.ndarray), _area_normals(mesh)
    moved = vertices + normals * _waves(vertices, rng, 64, (0.7, 4.0), unit_mm, 1) * bump_mm
    return np.asarray(moved + _waves(vertices, rng, 8, (6.0, 16.0), unit_mm, 3) * sway_mm)


def to_length(vertices: NDArray[np.float64], length_mm: float) -> NDArray[np.float64]:
    """Stretch the middle of the shaft so that the whole has its length; the ends keep theirs."""
    low, high = vertices[:, 0].min(), vertices[:, 0].max()
    share = ramp((vertices[:, 0] - low) / (high - low), 0.25, 0.72)
    vertices = vertices.copy()
    vertices[:, 0] += (length_mm - (high - low)) * share
    return vertices


def finish(vertices: NDArray[np.float64], faces: NDArray[np.int64], side: Side) -> trimesh.Trimesh:
    """Mirror a right bone to its side and put the middle of its bounding box at 0."""
    if side is Side.LEFT:
        vertices = vertices * [1.0, -1.0, 1.0]
        faces = faces[:, ::-1]
    vertices = vertices - (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    return trimesh.Trimesh(vertices, np.ascontiguousarray(faces), process=False)


def check_positive(name: str, parameters: object, signed: frozenset[str]) -> None:
    """Raise InputError unless all parameters are finite and all but `signed` ones positive."""
    for field in fields(parameters):  # type: ignore[arg-type]
        value = getattr(parameters, field.name)
        if isinstance(value, Side):
            continue
        if not np.isfinite(value) or (value <= 0 and field.name not in signed):
            raise InputError(name, f"{field.name} is {value}", "give a finite, positive number")


def _waves(
    points: NDArray[np.float64],
    rng: np.random.Generator,
    count: int,
    band: tuple[float, float],
    unit_mm: float,
    channels: int,
) -> NDArray[np.float64]:
    """(n, channels) sums of plane waves of RMS about 1, longer ones stronger."""
    direction = rng.standard_normal((count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    length = np.exp(rng.uniform(np.log(band[0]), np.log(band[1]), count))
    phase = rng.uniform(0.0, 2.0 * np.pi, count)
    weight = rng.standard_normal((count, channels)) * length[:, None]
    # By the expected power, not the drawn one: some bones are smoother than others.
    weight /= np.sqrt(np.sum(length**2) / 2.0)
    waves = np.cos(points @ (direction * 2 * np.pi / (length[:, None] * unit_mm)).T + phase)
    return np.asarray(waves @ weight)


def _area_normals(mesh: trimesh.Trimesh) -> NDArray[np.float64]:
    """(n, 3) unit vertex normals weighted by area, so that slivers do not count."""
    corners = mesh.vertices.view(np.ndarray)[mesh.faces]
    face = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    index = mesh.faces.ravel()
    total = [np.bincount(index, np.repeat(face[:, c], 3), len(mesh.vertices)) for c in range(3)]
    normals = np.stack(total, axis=1)
    return np.asarray(normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12))
