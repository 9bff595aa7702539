"""A long bone measured: length, widths and, of a femur, head, neck, version and condyles.

Everything is measured in the bone's anatomical frame (``frames.anatomical_frame``), whose
first axis is the line through the shaft between 15 and 85 % of the length and whose second
runs along the line that touches both posterior condyles, seen along the shaft.

Definitions, of a femur
    length : extent along the shaft axis. Greatest length: from the head to the medial
        condyle, between the points furthest apart (R. Martin's measure 1).
    head : the sphere that fits the articular surface, by area; margins, fovea and
        osteophytes lie off it and are weighted down to nothing (Tukey's biweight).
    neck axis : from the middle of the neck's isthmus, its narrowest cross-section at a right
        angle to this very axis, to the centre of the head. (Fischer et al., Sci Rep
        2020;10:20859, mark head and isthmus with landmarks that define the same line.)
    neck-shaft angle : in space, between the neck axis and the shaft axis towards the knee.
    anteversion : between neck axis and posterior condylar line, both seen along the shaft
        axis; positive if the head lies to the front. Along the mechanical axis (centre of
        the head to the intercondylar notch) the same lines differ by 2 to 4 degrees less.
    epicondylar width : of the distal end, parallel to the plane that both condyles stand on,
        as an osteometric board measures it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import ConvexHull
from scipy.spatial.distance import cdist

from osteoprint.errors import InputError
from osteoprint.frames import END_SPAN, Side, anatomical_frame, apply

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Head and neck lie within this part of the length.
HEAD_SPAN = 0.25
# Where the search begins; heads of men and cats have radii of 0.045 to 0.056 lengths.
HEAD_RADIUS = 0.05
# Up, to the middle and to the front: roughly where any neck points.
NECK_START = (0.65, 0.7, 0.3)
# What lies further than 120 degrees from the neck's direction is neck, not head.
HEAD_REACH = -0.5
# The tolerance of the fit, in radii: from anything like a head down to cartilage.
WIDE, NARROW, NARROWING = 0.30, 0.08, 0.85
# Less than this part of the sphere within the tolerance is no head.
LEAST_HEAD = 0.25
# Cross-sections of the neck are taken so many radii from the centre of the head. Those that
# are hardly wider than the narrowest count too: the place of a flat minimum is uncertain.
NECK_SECTIONS = np.arange(0.7, 2.2, 0.05)
HARDLY_WIDER = 1.03


@dataclass(frozen=True, eq=False)
class Morphometry:
    """What was measured on a bone; see the module for definitions. None: it has no such.

    Attributes
    ----------
    bone, side : as given or as the shape tells.
    length_mm : extent along the shaft axis.
    greatest_length_mm : of a femur, head to medial condyle; else between any two points.
    proximal_width_mm, distal_width_mm : greatest widths of the ends, seen along the shaft.
    midshaft_ml_mm, midshaft_ap_mm : of the cross-section halfway, side to side along the
        frame's second axis, front to back along the third.
    head_diameter_mm, head_centre_mm : the sphere; (3,) in the frame of the surface.
    neck_axis : (3,) unit vector towards the head, in the frame of the surface.
    neck_shaft_angle_deg, anteversion_deg, epicondylar_width_mm : see the module.
    warnings : what was doubtful, in words.
    """

    bone: str | None
    side: Side | None
    length_mm: float
    greatest_length_mm: float
    proximal_width_mm: float
    distal_width_mm: float
    midshaft_ml_mm: float
    midshaft_ap_mm: float
    head_diameter_mm: float | None = None
    head_centre_mm: Floats | None = None
    neck_axis: Floats | None = None
    neck_shaft_angle_deg: float | None = None
    anteversion_deg: float | None = None
    epicondylar_width_mm: float | None = None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and lists by name."""
        values = dict(vars(self))
        for name in ("head_centre_mm", "neck_axis"):
            values[name] = None if values[name] is None else [float(x) for x in values[name]]
        values["side"] = None if self.side is None else self.side.value
        values["warnings"] = list(self.warnings)
        return values


def measure_bone(
    surface: trimesh.Trimesh,
    *,
    bone: str | None = "femur",
    side: Side | None = None,
    source: str = "bone surface",
) -> Morphometry:
    """Measure one whole long bone.

    Parameters
    ----------
    surface : closed and wound outwards, mm, in any pose and position.
    bone : "femur" has everything measured; any other (or None) length and widths.
    side : where the caller knows it; no measure depends on it.
    source : what messages call the surface.

    Raises
    ------
    InputError : no surface, not a long bone, or a femur without condyles or without a head.
    """
    used, faces = np.unique(np.asarray(surface.faces, dtype=np.int64), return_inverse=True)
    faces = faces.reshape(-1, 3)
    vertices = np.asarray(surface.vertices, dtype=np.float64)[used]
    frame = anatomical_frame(vertices, faces, bone=bone, side=side, source=source)
    points = apply(frame.world_to_bone, vertices)
    ends = [_end(points, direction) for direction in (1.0, -1.0)]
    middle = np.ptp(_cut(points, faces, np.zeros(3), np.eye(3)[0])[0], axis=(0, 1))
    general: dict[str, Any] = {
        "bone": bone,
        "side": frame.side,
        "length_mm": frame.length_mm,
        "proximal_width_mm": _greatest_distance(ends[0][:, 1:]),
        "distal_width_mm": _greatest_distance(ends[1][:, 1:]),
        "midshaft_ml_mm": float(middle[1]),
        "midshaft_ap_mm": float(middle[2]),
        "warnings": frame.warnings,
    }
    if bone is None or bone.strip().lower() != "femur":
        return Morphometry(greatest_length_mm=_greatest_distance(points), **general)
    medial = 1.0 if ends[0][:, 1].max() > -ends[0][:, 1].min() else -1.0
    head, neck = _head_and_neck(points, faces, medial, source)
    on_head = points[head.holds(points, neck)]
    across = medial * ends[1][:, 1]
    inner_condyle = ends[1][across > (across.min() + across.max()) / 2]
    return Morphometry(
        greatest_length_mm=float(cdist(_corners(on_head), _corners(inner_condyle)).max()),
        head_diameter_mm=2 * head.radius,
        head_centre_mm=apply(frame.bone_to_world, head.centre[None])[0],
        neck_axis=frame.bone_to_world[:3, :3] @ neck,
        neck_shaft_angle_deg=float(np.degrees(np.arccos(-neck[0]))),
        anteversion_deg=float(np.degrees(np.arctan2(neck[2], medial * neck[1]))),
        epicondylar_width_mm=_epicondylar_width(ends[1]),
        **general,
    )


def _end(points: Floats, direction: float) -> Floats:
    """The points of the end that lies in `direction` along the first axis."""
    along = direction * points[:, 0]
    return np.asarray(points[along >= along.max() - END_SPAN * np.ptp(along)])


def _corners(points: Floats) -> Floats:
    """The corners of the convex hull of (n, d) points."""
    return np.asarray(points[ConvexHull(points).vertices])


def _greatest_distance(points: Floats) -> float:
    """Between any two of (n, d) points."""
    corners = _corners(points)
    return float(cdist(corners, corners).max())


def _epicondylar_width(distal: Floats) -> float:
    """Width of the distal end along the plane on which both condyles stand, seen from the front.

    That plane bridges the notch: of all edges of the outline that face down it is the one
    that faces down most, by its length.
    """
    outline = _corners(distal[:, :2])
    edges = np.roll(outline, -1, axis=0) - outline
    # The outline runs counter-clockwise, so (dy, -dx) is an edge's outward normal.
    standing = edges[np.argmin(edges[:, 1])]
    return float(np.ptp(distal[:, :2] @ (standing / np.linalg.norm(standing))))


@dataclass(frozen=True, eq=False)
class _Head:
    """The sphere of a femoral head: (3,) centre and radius, mm."""

    centre: Floats
    radius: float

    def holds(self, points: Floats, neck: Floats, tolerance: float = NARROW) -> NDArray[np.bool_]:
        """Which of (n, 3) points lie on the sphere, on the part of it that is head."""
        away = points - self.centre
        distance = np.linalg.norm(away, axis=1)
        on_sphere = np.abs(distance - self.radius) < tolerance * self.radius
        return np.asarray(on_sphere & (away @ neck > HEAD_REACH * distance))


def _head_and_neck(points: Floats, faces: Ints, medial: float, source: str) -> tuple[_Head, Floats]:
    """The head, and the (3,) direction of the neck towards it, found in turn."""
    top, length = points[:, 0].max(), np.ptp(points[:, 0])
    faces = faces[(points[faces, 0] > top - HEAD_SPAN * length).all(axis=1)]
    corners = points[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    centres, areas = corners.mean(axis=1), np.linalg.norm(normals, axis=1) / 2
    radius = HEAD_RADIUS * length
    innermost = centres[np.argmax(medial * centres[:, 1])]
    head = _Head(innermost - [0.0, medial * radius, 0.0], radius)
    neck = np.array(NECK_START) * [1.0, medial, 1.0]
    neck /= np.linalg.norm(neck)
    for widest in (WIDE, 2 * NARROW):
        head = _fit_head(centres, areas, head, neck, widest, source)
        neck = _neck_axis(points, faces, head, neck, source)
    return head, neck


def _fit_head(
    centres: Floats, areas: Floats, head: _Head, neck: Floats, widest: float, source: str
) -> _Head:
    """The sphere through the articular surface, by area, from a first guess.

    Tukey's biweight with a tolerance that narrows from `widest` to NARROW.

    Raises InputError if too little of the sphere is there.
    """
    tolerance = widest
    for _ in range(100):
        near = head.holds(centres, neck, tolerance)
        if areas[near].sum() < LEAST_HEAD * 4 * np.pi * head.radius**2:
            raise InputError(source, "shows no femoral head", "give a whole femur, or another bone")
        off = np.linalg.norm(centres[near] - head.centre, axis=1) / head.radius - 1
        better = _sphere(centres[near], areas[near] * (1 - (off / tolerance) ** 2) ** 2)
        settled = np.linalg.norm(better.centre - head.centre) < 1e-6 * head.radius
        head = better
        if settled and tolerance == NARROW:
            break
        tolerance = max(NARROWING * tolerance, NARROW)
    return head


def _sphere(points: Floats, weights: Floats) -> _Head:
    """The sphere with the least weighted squares of |p - c|^2 - r^2, about their middle."""
    middle = points.mean(axis=0)
    near = points - middle
    root = np.sqrt(weights)
    system = np.column_stack([2 * near, np.ones(len(near))]) * root[:, None]
    solution = np.linalg.lstsq(system, (near**2).sum(axis=1) * root, rcond=None)[0]
    offset = solution[:3]
    return _Head(middle + offset, float(np.sqrt(solution[3] + offset @ offset)))


def _neck_axis(points: Floats, faces: Ints, head: _Head, start: Floats, source: str) -> Floats:
    """(3,) unit direction from the middle of the isthmus to the centre of the head.

    The isthmus is sought across the axis, and the axis is drawn through the isthmus, in turn.
    """
    axis = start
    for _ in range(30):
        found = [
            _section(points, faces, head.centre - step * head.radius * axis, axis)
            for step in NECK_SECTIONS
        ]
        whole = [section for section in found if section is not None]
        if not whole:
            raise InputError(source, "shows no femoral neck", "give a whole femur, or another bone")
        areas = np.array([area for area, _ in whole])
        narrow = areas <= HARDLY_WIDER * areas.min()
        isthmus = np.array([middle for _, middle in whole])[narrow].mean(axis=0)
        better = head.centre - isthmus
        better /= np.linalg.norm(better)
        change = np.linalg.norm(better - axis)
        axis = better
        if change < 1e-4:
            break
    return axis


def _section(
    points: Floats, faces: Ints, origin: Floats, normal: Floats
) -> tuple[float, Floats] | None:
    """Area and (3,) centroid of the cross-section that holds `origin`; None if none does.

    The pieces of the cut keep the sense of their triangles, so that area and centroid follow
    from them unsorted; a closed outline around the origin turns once about it.
    """
    cut, keys = _cut(points, faces, origin, normal)
    if len(cut) < 3:
        return None
    second = np.cross(normal, np.eye(3)[np.argmin(np.abs(normal))])
    second /= np.linalg.norm(second)
    plane = np.stack([second, np.cross(normal, second)], axis=1)
    start, end = np.moveaxis((cut - origin) @ plane, 1, 0)
    cross = start[:, 0] * end[:, 1] - start[:, 1] * end[:, 0]
    loop = _loops(keys)
    turns = np.bincount(loop, np.arctan2(cross, (start * end).sum(axis=1))) / (2 * np.pi)
    around = int(np.argmax(np.abs(turns)))
    if abs(turns[around]) < 0.99:
        return None
    mine = loop == around
    area = cross[mine].sum() / 2
    middle = ((start + end)[mine] * cross[mine, None]).sum(axis=0) / (6 * area)
    return abs(float(area)), origin + plane @ middle


def _cut(points: Floats, faces: Ints, origin: Floats, normal: Floats) -> tuple[Floats, Ints]:
    """Where the plane through `origin` cuts the faces.

    Returns (k, 2, 3) pieces, each from where its triangle's outline falls through the plane
    to where it rises again, and (k, 2) the edges of the mesh these ends lie on, as numbers.
    """
    height = (points - origin) @ normal
    above = height[faces] > 0.0
    hit = above.any(axis=1) & ~above.all(axis=1)
    faces, above = faces[hit], above[hit]
    after = np.roll(above, -1, axis=1)
    ends, keys = [], []
    for crossing in (above & ~after, ~above & after):
        which, corner = np.nonzero(crossing)
        a, b = faces[which, corner], faces[which, (corner + 1) % 3]
        part = height[a] / (height[a] - height[b])
        ends.append(points[a] + part[:, None] * (points[b] - points[a]))
        keys.append(np.minimum(a, b) * len(points) + np.maximum(a, b))
    return np.stack(ends, axis=1), np.stack(keys, axis=1)


def _loops(keys: Ints) -> Ints:
    """(k,) the number of the outline that each piece belongs to, from the edges they share."""
    names, ends = np.unique(keys, return_inverse=True)
    ends = ends.reshape(-1, 2)
    links = coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(names),) * 2)
    return np.asarray(connected_components(links, directed=False)[1][ends[:, 0]])
