"""Which bone is it, and of which side? Only what the scan itself shows, with the reason.

Nothing here depends on absolute size, so that a cat's leg is read like a human one. A tibia
is known by the thin bone at its side, a femur and a patella by the tibia they sit on. A long
bone on its own could be a femur or a humerus: it stays unnamed, and the user names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from osteoprint.frames import Side, apply

_BINS = 50  # of a profile along the bone's axis
_SLENDER = 5.0  # length over shaft diameter of a long bone; all human and feline ones exceed 7

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BoneShape:
    """The measures of a bone that tell what it is.

    Attributes
    ----------
    centre : (3,) centroid, LPS mm.
    axis : (3,) unit vector of the longest extent, LPS.
    low, high : coordinate along ``axis`` of the two ends, mm.
    profile_mm2 : (50,) area of the cross-sections from ``low`` to ``high``.
    points : (n, 3) points of its surface, LPS mm, thinned out.
    volume_mm3 : of the filled bone.
    cut_area_mm2 : in which the scan's border cuts it.
    both_ends : see ``IsolatedBone``.
    """

    centre: Floats
    axis: Floats
    low: float
    high: float
    profile_mm2: Floats
    points: Floats
    volume_mm3: float
    cut_area_mm2: float
    both_ends: bool

    @property
    def length_mm(self) -> float:
        """Extent along the axis."""
        return self.high - self.low

    @property
    def shaft_mm2(self) -> float:
        """Median cross-section of the middle part."""
        return float(np.median(self.profile_mm2[_BINS // 5 : -_BINS // 5]))

    @property
    def slender(self) -> bool:
        """True for a long bone."""
        return self.length_mm > _SLENDER * 2 * np.sqrt(max(self.shaft_mm2, 1e-9) / np.pi)

    def end(self, high: bool) -> Floats:
        """(3,) the point of the axis at one of its ends, LPS mm."""
        along = self.high if high else self.low
        return self.centre + self.axis * (along - self.centre @ self.axis)


def measure_bone(
    mask: NDArray[np.bool_], voxel_to_world: Floats, borders: Sequence[tuple[int, int]]
) -> BoneShape:
    """Measure a filled mask.

    Parameters
    ----------
    mask : (I, J, K) bool, not empty.
    voxel_to_world : (4, 4) index -> LPS mm.
    borders : (axis, 0 or -1) of those faces of the grid that are the border of the scan.

    Raises ValueError for an empty mask.
    """
    if not mask.any():
        raise ValueError("an empty mask has no shape")
    world = apply(voxel_to_world, np.argwhere(mask).astype(np.float64))
    centre = world.mean(axis=0)
    axis = np.linalg.eigh(np.cov((world - centre).T) + 1e-9 * np.eye(3))[1][:, -1]
    axis = axis * np.sign(axis[np.argmax(np.abs(axis))])
    along = world @ axis
    # Voxels are counted by their centres; half a voxel belongs to the bone at either end.
    half = float(np.abs(axis @ voxel_to_world[:3, :3]).max()) / 2
    low, high = float(along.min()) - half, float(along.max()) + half
    counts, _ = np.histogram(along, bins=_BINS, range=(low, high))
    voxel_mm3 = abs(float(np.linalg.det(voxel_to_world[:3, :3])))
    profile = counts * voxel_mm3 / ((high - low) / _BINS)
    cut, area = np.zeros_like(mask), 0.0
    for i, end in borders:
        face: list[slice | int] = [slice(None)] * 3
        face[i] = end
        a, b = (voxel_to_world[:3, j] for j in range(3) if j != i)
        area += float(np.count_nonzero(mask[tuple(face)]) * np.linalg.norm(np.cross(a, b)))
        cut[tuple(face)] |= mask[tuple(face)]
    skin = np.argwhere(mask & ~ndimage.binary_erosion(mask))
    skin = skin[:: max(1, len(skin) // 4000)]
    shape = BoneShape(
        centre=centre,
        axis=axis,
        low=low,
        high=high,
        profile_mm2=profile,
        points=apply(voxel_to_world, skin.astype(np.float64)),
        volume_mm3=len(world) * voxel_mm3,
        cut_area_mm2=area,
        both_ends=area == 0.0,
    )
    if not area:
        return shape
    cut_at = apply(voxel_to_world, np.argwhere(cut).astype(np.float64)) @ axis
    return replace(shape, both_ends=_ends_in_sight(shape, (cut_at - low) / (high - low)))


def _ends_in_sight(shape: BoneShape, cut_at: Floats) -> bool:
    """True if a cut long bone widens towards the cut and is narrowing again where it is cut."""
    if not shape.slender or np.any((cut_at > 0.15) & (cut_at < 0.85)):
        return False
    zone = _BINS // 5
    shaft = float(shape.profile_mm2[zone:-zone].min())
    for at_high in (False, True):
        if not np.any((cut_at > 0.5) == at_high):
            continue
        end = shape.profile_mm2[::-1][:zone] if at_high else shape.profile_mm2[:zone]
        if end.max() < 1.3 * shaft or end[0] > 0.95 * end.max():
            return False
    return True


@dataclass(frozen=True)
class BoneName:
    """What a bone is and why, and its side; None where the scan does not tell."""

    kind: str | None
    reason: str
    side: Side | None = None
    warnings: tuple[str, ...] = ()


def name_bones(shapes: Sequence[BoneShape]) -> list[BoneName]:
    """Name the bones of one scan from their shapes and places, one name for each shape."""
    names = [BoneName(None, _unnamed(shape)) for shape in shapes]
    legs = _legs(shapes)
    sides = _sides(shapes, legs)
    for (tibia, fibula), (side, warnings) in zip(legs, sides):
        names[tibia] = BoneName("tibia", "a long bone with a thin one at its side", side, warnings)
        names[fibula] = BoneName("fibula", "the thin long bone beside a tibia", side, warnings)
    for (tibia, _), (side, _w) in zip(legs, sides):
        for i, name in _around_the_knee(shapes, names, shapes[tibia], side).items():
            names[i] = name
    loose = [i for i, shape in enumerate(shapes) if shape.slender and names[i].kind is None]
    if not legs and len(loose) == 2:
        for i, side in zip(loose, _pair_sides(shapes[loose[0]], shapes[loose[1]])):
            names[i] = replace(names[i], side=side)
    return names


def _unnamed(shape: BoneShape) -> str:
    if shape.slender:
        return "a long bone with nothing beside it that tells which"
    return (
        "not a long bone, and not at a knee" if not shape.cut_area_mm2 else "only a part of a bone"
    )


def _distance_mm(a: BoneShape, b: BoneShape) -> float:
    return float(cKDTree(a.points).query(b.points)[0].min())


def _legs(shapes: Sequence[BoneShape]) -> list[tuple[int, int]]:
    """(tibia, fibula) pairs: parallel, as long, touching, one much thinner than the other."""
    found: list[tuple[float, int, int]] = []
    for i, a in enumerate(shapes):
        for j, b in enumerate(shapes):
            if i == j or not (a.slender and b.slender) or b.shaft_mm2 > 0.6 * a.shaft_mm2:
                continue
            ratio = b.length_mm / a.length_mm
            apart = float(np.linalg.norm(np.cross(b.centre - a.centre, a.axis)))
            along = abs(float((b.centre - a.centre) @ a.axis))
            if not 0.7 < ratio < 1.3 or abs(a.axis @ b.axis) < 0.95:
                continue
            if apart < 0.25 * a.length_mm and along < 0.3 * a.length_mm:
                found.append((_distance_mm(a, b) / a.length_mm, i, j))
    pairs: list[tuple[int, int]] = []
    for gap, i, j in sorted(found):
        if gap < 0.05 and not any(k in pair for pair in pairs for k in (i, j)):
            pairs.append((i, j))
    return pairs


def _sides(
    shapes: Sequence[BoneShape], legs: Sequence[tuple[int, int]]
) -> list[tuple[Side | None, tuple[str, ...]]]:
    """Side of each leg: the fibula is on the outer side; two legs must agree with that."""
    sides: list[Side | None] = []
    for tibia, fibula in legs:
        out = shapes[fibula].centre - shapes[tibia].centre
        clear = abs(out[0]) > 0.25 * float(np.linalg.norm(out))
        sides.append((Side.LEFT if out[0] > 0 else Side.RIGHT) if clear else None)
    if len(legs) == 2:
        by_place = _pair_sides(shapes[legs[0][0]], shapes[legs[1][0]])
        if None not in by_place:
            if all(side in (None, place) for side, place in zip(sides, by_place)):
                return [(place, ()) for place in by_place]
            doubt = "the fibulae lie on the inner sides: left and right of this scan are in doubt"
            return [(None, (doubt,)) for _ in legs]
    return [(side, () if side else ("its side cannot be told",)) for side in sides]


def _pair_sides(a: BoneShape, b: BoneShape) -> tuple[Side | None, Side | None]:
    """Of two like bones side by side, the one at larger x (LPS) is the left."""
    apart = b.centre - a.centre
    alike = 0.9 < a.length_mm / b.length_mm < 1.11 and abs(a.axis @ b.axis) > 0.7
    if not alike or abs(apart[0]) < 0.7 * float(np.linalg.norm(apart)):
        return None, None
    return (Side.RIGHT, Side.LEFT) if apart[0] > 0 else (Side.LEFT, Side.RIGHT)


def _around_the_knee(
    shapes: Sequence[BoneShape], names: Sequence[BoneName], tibia: BoneShape, side: Side | None
) -> dict[int, BoneName]:
    """Femur and patella: what lies beyond the tibia's thick end, and in front of it."""
    zone = _BINS // 8
    top_is_high = tibia.profile_mm2[-zone:].mean() > tibia.profile_mm2[:zone].mean()
    top, up = tibia.end(top_is_high), tibia.axis * (1 if top_is_high else -1)
    near = 0.12 * tibia.length_mm
    beyond: dict[int, BoneShape] = {}
    for i, shape in enumerate(shapes):
        gap = float(cKDTree(shape.points).query(top)[0])
        if names[i].kind is None and gap < 1.5 * near and (shape.centre - top) @ up > -near / 2:
            beyond[i] = shape
    if not beyond:
        return {}
    largest = max(beyond, key=lambda i: beyond[i].volume_mm3)
    result = {}
    for i, shape in beyond.items():
        # y points to the back; a patella lies wholly before the middle of the tibia's top.
        in_front = np.percentile(shape.points[:, 1], 75) < top[1] - 0.03 * tibia.length_mm
        small = shape.volume_mm3 < 0.2 * tibia.volume_mm3
        if i != largest and small and in_front:
            result[i] = BoneName("patella", "a small bone before a knee", side)
        elif not in_front or i == largest:
            result[i] = BoneName("femur", "on top of a tibia", side)
    return result
