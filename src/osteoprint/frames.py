"""Frames of reference: LPS millimetres, rigid transforms, the axes of a long bone.

World coordinates are LPS (x to the patient's left, y to the back, z to the head) in
millimetres, everywhere. A transform is named after what it maps, ``a_to_b``, and is a
(4, 4) float64 matrix that acts on column vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError

from osteoprint.errors import InputError

Floats = NDArray[np.float64]

# The shaft is what lies between these fractions of the length: between the condyles and the
# trochanters of a femur, and long enough that its bow does not tilt the line through it.
SHAFT_SPAN = (0.15, 0.85)
SHAFT_SECTIONS = 21
# How much of the length belongs to each end: the condyles, the head and trochanters.
END_SPAN = 0.12
# Shorter than this many times its width, a bone has no shaft to speak of.
LEAST_ELONGATION = 2.0
# Which end is the wider one, where that is known.
WIDER_END_IS_PROXIMAL = {"tibia": True, "humerus": True, "ulna": True, "radius": False}


class Side(StrEnum):
    """The side of the body a bone comes from."""

    LEFT = "left"
    RIGHT = "right"


class View(StrEnum):
    """A standard projection: AP runs front to back, ML from the inner side to the outer."""

    AP = "AP"
    ML = "ML"


@dataclass(frozen=True, eq=False)
class AnatomicalFrame:
    """The anatomical frame of a long bone.

    Origin in the middle of the bone's bounding box in this frame. First axis along the
    shaft, distal to proximal; third axis to the front; second axis completes a
    right-handed frame, so it points to the patient's right: medial to lateral on a right
    bone, lateral to medial on a left one. The frame is always a rotation: no bone is
    mirrored by changing into it.

    Attributes
    ----------
    bone_to_world : (4, 4) float64, rigid, anatomical frame -> LPS mm.
    side : the side the shape says (or the caller knew); None where it cannot tell.
    length_mm : extent along the first axis.
    warnings : what was doubtful, in words.
    """

    bone_to_world: NDArray[np.float64]
    side: Side | None
    length_mm: float
    warnings: tuple[str, ...] = ()

    @property
    def world_to_bone(self) -> NDArray[np.float64]:
        """(4, 4) LPS mm -> anatomical frame."""
        return invert_rigid(self.bone_to_world)


def rigid(
    rotation: NDArray[np.float64], translation_mm: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(4, 4) transform from a (3, 3) rotation and a (3,) translation in mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = translation_mm
    return matrix


def invert_rigid(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of a (4, 4) rigid transform, without a general matrix inverse."""
    rotation = matrix[:3, :3].T
    return rigid(rotation, -rotation @ matrix[:3, 3])


def apply(matrix: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map (n, 3) points through a (4, 4) affine transform."""
    return np.asarray(points @ matrix[:3, :3].T + matrix[:3, 3])


def anatomical_frame(
    vertices: Floats,
    faces: NDArray[np.integer],
    *,
    bone: str | None = None,
    side: Side | None = None,
    source: str = "bone surface",
) -> AnatomicalFrame:
    """The anatomical frame of a long bone, from its shape alone.

    The pose, the size, the triangulation, small holes and inner walls do not matter. The
    first axis is the line through the middles of the cross-sections between 15 and 85 % of
    the length. A femur's second axis is parallel to the line that touches both posterior
    condyles, seen along the shaft (the "table top" plane: Murphy et al., J Bone Joint Surg
    Am 1987;69:1169); its front is where the condyles do not stick out, its side where the
    head is. Of other bones, the second axis is the wider direction of the cross-sections at
    the wider end; what their shape cannot tell is said in ``warnings``.

    Parameters
    ----------
    vertices : (n, 3) mm, in any pose.
    faces : (m, 3) indices into `vertices`, in any orientation.
    bone : "femur", "tibia", ...; None where it is not known.
    side : the side, where the caller knows it; it wins over the shape, with a warning.
    source : what the messages call this surface.

    Returns
    -------
    The frame; see :class:`AnatomicalFrame` for its convention.

    Raises
    ------
    InputError : no surface, not a long bone, or a femur without its condyles.
    """
    points, tris = _checked_surface(vertices, faces, source)
    axis, middle = _shaft_axis(points, tris, source)
    basis = _basis_along(axis)
    local = (points - middle) @ basis.T
    outline = _hull(local[:, 1:])
    if outline is None or np.ptp(local[:, 0]) < LEAST_ELONGATION * _widths(outline)[1]:
        raise InputError(source, "this is not a long bone", "give a whole long bone")
    ends = (_bone_end(local, -1.0), _bone_end(local, 1.0))
    kind = bone.strip().lower() if bone is not None else None
    if kind == "femur":
        up, front, told, warnings = _read_femur(ends, source)
    else:
        up, front, told, warnings = _read_other(ends, kind)
    x = up * basis[0]
    z = front[0] * basis[1] + front[1] * basis[2]
    return _frame_around(points, x, z, told if side is None else side, told, warnings)


def _frame_around(
    points: Floats, x: Floats, z: Floats, side: Side | None, told: Side | None, warnings: list[str]
) -> AnatomicalFrame:
    """The frame with these axes, its origin in the middle of the box around `points`."""
    if side is not None and told is not None and side != told:
        warnings = [*warnings, f"the shape says {told.value}, the caller said {side.value}"]
    rotation = np.stack([x, np.cross(z, x), z], axis=1)
    inside = points @ rotation
    low, high = inside.min(axis=0), inside.max(axis=0)
    return AnatomicalFrame(
        bone_to_world=rigid(rotation, rotation @ (low + high) / 2),
        side=side,
        length_mm=float(high[0] - low[0]),
        warnings=tuple(warnings),
    )


@dataclass(frozen=True, eq=False)
class _End:
    """One end of a long bone, seen along the shaft: in units of the bone's length.

    ``outline`` is the convex hull, counter-clockwise; ``offset`` its middle, measured from
    the shaft; ``widths`` its smallest and largest width; ``wide`` the direction in which
    its area spreads most; ``tip`` the middle of the last hundredth.
    """

    outline: Floats
    area: float
    offset: Floats
    widths: tuple[float, float]
    wide: Floats
    tip: Floats


def _checked_surface(
    vertices: Floats, faces: NDArray[np.integer], source: str
) -> tuple[Floats, NDArray[np.int64]]:
    """The points that the faces use, and the faces that index them."""
    points = np.asarray(vertices, dtype=np.float64)
    tris = np.asarray(faces, dtype=np.int64)
    if points.ndim != 2 or points.shape[1] != 3 or tris.ndim != 2 or tris.shape[1] != 3:
        raise InputError(source, "is not a triangle mesh", "give (n, 3) vertices, (m, 3) faces")
    if len(tris) == 0:
        raise InputError(source, "has no triangles", "give a closed surface of one bone")
    if tris.min() < 0 or tris.max() >= len(points):
        raise InputError(source, "has faces that name no vertex", "repair the mesh")
    used, tris = np.unique(tris, return_inverse=True)
    points = points[used]
    if not np.isfinite(points).all():
        raise InputError(source, "has vertices that are not finite", "repair the mesh")
    return points, tris.reshape(-1, 3)


def _shaft_axis(points: Floats, faces: NDArray[np.int64], source: str) -> tuple[Floats, Floats]:
    """(3,) unit direction of the shaft, of either sign, and (3,) a point on it."""
    corners = points[faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(cross, axis=1)
    if not area.sum() > 0.0:
        raise InputError(source, "has no area", "give a closed surface of one bone")
    centred = corners.mean(axis=1)
    centred = centred - np.average(centred, axis=0, weights=area)
    axis: Floats = np.linalg.eigh((centred * area[:, None]).T @ centred)[1][:, 2]
    for _ in range(12):
        middles = _section_middles(points, faces, axis)
        if len(middles) < SHAFT_SECTIONS // 2:
            raise InputError(source, "has no shaft to cut across", "give a whole long bone")
        better = np.linalg.svd(middles - middles.mean(axis=0))[2][0]
        better = better * np.sign(better @ axis)
        change = np.linalg.norm(better - axis)
        axis = better
        if change < 1e-7:
            break
    return axis, middles.mean(axis=0)


def _section_middles(points: Floats, faces: NDArray[np.int64], axis: Floats) -> Floats:
    """(k, 3) middles of the cross-sections of the shaft, at even distances along `axis`.

    A section is taken as its convex hull: this is what closes the holes of an imperfect
    surface and passes over marrow cavities.
    """
    basis = _basis_along(axis)
    local = points @ basis.T
    along = local[:, 0][faces]
    low, high = along.min(axis=1), along.max(axis=1)
    bottom, length = low.min(), high.max() - low.min()
    middles = []
    for height in bottom + length * np.linspace(*SHAFT_SPAN, SHAFT_SECTIONS):
        hit = np.flatnonzero((low < height) & (high >= height))
        outline = _hull(_cut(local, faces[hit], height))
        if outline is not None:
            middles.append(np.append(height, _polygon_moments(outline)[1]))
    return np.array(middles).reshape(-1, 3) @ basis


def _cut(local: Floats, faces: NDArray[np.int64], height: float) -> Floats:
    """(k, 2) points where the edges of `faces` pass the plane at `height` along axis 0."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    start, end = local[edges[:, 0]], local[edges[:, 1]]
    crossing = (start[:, 0] < height) != (end[:, 0] < height)
    start, end = start[crossing], end[crossing]
    part = (height - start[:, 0]) / (end[:, 0] - start[:, 0])
    return np.asarray(start[:, 1:] + part[:, None] * (end - start)[:, 1:])


def _hull(points: Floats) -> Floats | None:
    """(k, 2) convex hull, counter-clockwise; None where the points span no area."""
    if len(points) < 3:
        return None
    try:
        return np.asarray(points[ConvexHull(points).vertices])
    except QhullError:
        return None


def _polygon_moments(outline: Floats) -> tuple[float, Floats, Floats]:
    """Area, (2,) middle and (2, 2) second moments about it, of a simple polygon."""
    origin = outline.mean(axis=0)
    a = outline - origin
    b = np.roll(a, -1, axis=0)
    cross = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    area = cross.sum() / 2
    middle = ((a + b) * cross[:, None]).sum(axis=0) / (6 * area)
    total = a + b
    weighted = cross[:, None, None] / 24
    second = sum(np.einsum("ni,nj->nij", p, p) for p in (a, b, total))
    moments = (weighted * second).sum(axis=0) - area * np.outer(middle, middle)
    return float(area), origin + middle, moments


def _widths(outline: Floats) -> tuple[float, float]:
    """The smallest and the largest width of a (k, 2) convex outline, to a degree."""
    angles = np.arange(180) * (np.pi / 180)
    widths = np.ptp(outline @ np.stack([np.cos(angles), np.sin(angles)]), axis=0)
    return float(widths.min()), float(widths.max())


def _basis_along(axis: Floats) -> Floats:
    """(3, 3) right-handed basis as rows, the first of them `axis`."""
    second = np.cross(axis, np.eye(3)[np.argmin(np.abs(axis))])
    second /= np.linalg.norm(second)
    return np.stack([axis, second, np.cross(axis, second)])


def _bone_end(local: Floats, direction: float) -> _End:
    """The end of the bone that lies in `direction` along axis 0 of `local`."""
    length = np.ptp(local[:, 0])
    depth = (direction * local[:, 0]).max() - direction * local[:, 0]
    outline = _hull(local[depth <= END_SPAN * length, 1:] / length)
    if outline is None:
        outline = np.array([[0.0, 0.0], [1e-6, 0.0], [0.0, 1e-6]])
    area, offset, moments = _polygon_moments(outline)
    wide = np.linalg.eigh(moments)[1][:, 1]
    tip = local[depth <= 0.01 * length, 1:].mean(axis=0) / length
    return _End(outline, area, offset, _widths(outline), wide, tip)


# What an end must reach to be taken for condyles, and how far (in lengths) a head or an ankle
# must lie to one side to be believed. In 64 human femora condyles score at least 0.35 and
# heads at most 0.13; the head lies at least 0.021 to the side.
LEAST_CONDYLES = 0.22
LEAST_OFFSET = 0.008


def _back_tangent(end: _End) -> tuple[Floats, float]:
    """The line that bridges the hollow of `end` on the side to which the end sticks out:
    its (2,) outward normal, and its length as far as it faces that way."""
    edges = np.roll(end.outline, -1, axis=0) - end.outline
    lengths = np.linalg.norm(edges, axis=1)
    normals = np.stack([edges[:, 1], -edges[:, 0]], axis=1) / lengths[:, None]
    bridging = normals @ end.offset * lengths / max(float(np.linalg.norm(end.offset)), 1e-12)
    return normals[np.argmax(bridging)], float(bridging.max())


def _read_femur(
    ends: tuple[_End, _End], source: str
) -> tuple[float, Floats, Side | None, list[str]]:
    """Sign of the proximal direction, (2,) front, side, and doubts, of a femur.

    Condyles are deep as well as wide, and a long edge of their outline spans the notch at
    the back, where they stick out. Head and trochanter are wide only; a stump is round.
    """
    scores = [_back_tangent(end)[1] * end.widths[0] / end.widths[1] ** 2 for end in ends]
    distal = int(np.argmax(scores))
    if scores[distal] < LEAST_CONDYLES:
        raise InputError(source, "shows no femoral condyles", "give a whole femur, or another bone")
    warnings = []
    if scores[1 - distal] > scores[distal] / 1.5:
        warnings.append("the two ends look alike: proximal and distal may be exchanged")
    up = 1.0 if distal == 0 else -1.0
    front = -_back_tangent(ends[distal])[0]
    side = _side_of(float(ends[1 - distal].offset @ _right_of(up, front)))
    if side is None:
        warnings.append("the side cannot be told: no femoral head stands out")
    return up, front, side, warnings


def _read_other(
    ends: tuple[_End, _End], kind: str | None
) -> tuple[float, Floats, Side | None, list[str]]:
    """Sign of the proximal direction, (2,) front, side, and doubts, of any other long bone."""
    warnings = []
    wider = int(ends[1].area > ends[0].area)
    if kind not in WIDER_END_IS_PROXIMAL:
        warnings.append("which end is proximal is not certain: the wider one was taken")
    elif ends[1 - wider].area > 0.85 * ends[wider].area:
        warnings.append("the two ends are about equally wide: proximal and distal may be exchanged")
    proximal = wider if WIDER_END_IS_PROXIMAL.get(kind or "", True) else 1 - wider
    up = 1.0 if proximal == 1 else -1.0

    # A widened end overhangs the shaft to the back, as the plateau of a tibia does.
    across = ends[wider].wide
    front = np.array([-across[1], across[0]])
    overhang = float(ends[wider].offset @ front)
    front = -front if overhang > 0 else front
    if kind != "tibia" or abs(overhang) < LEAST_OFFSET:
        warnings.append("front and back are not certain")
    side = None
    if kind == "tibia":
        # The inner ankle is what reaches furthest down.
        side = _side_of(float(ends[1 - proximal].tip @ _right_of(up, front)))
    if side is None:
        warnings.append("the side cannot be told from the shape")
    return up, front, side, warnings


def _right_of(up: float, front: Floats) -> Floats:
    """(2,) direction to the patient's right, in the plane across the shaft."""
    return up * np.array([front[1], -front[0]])


def _side_of(medial_offset: float) -> Side | None:
    """The side on which something medial lies `medial_offset` lengths to the right."""
    if abs(medial_offset) < LEAST_OFFSET:
        return None
    return Side.RIGHT if medial_offset < 0 else Side.LEFT
