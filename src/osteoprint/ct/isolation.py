"""A scan becomes bones: one closed mask per bone, with what is known about it.

``splitting`` says which voxel belongs to which bone; here every bone is closed and filled on
its own, on the scan's grid, where no neighbour is left to stick to, and told whether the
scan's border cuts it. ``naming`` says what bone it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from osteoprint.ct.naming import BoneShape, measure_bone, name_bones
from osteoprint.ct.splitting import (
    MIN_LENGTH_MM,
    THRESHOLD_HU,
    Bools,
    Box,
    Labels,
    Progress,
    close_gaps,
    fill_inside,
    label_bones,
)
from osteoprint.ct.volume import AIR_HU, Volume
from osteoprint.frames import Side

_MARGIN = 6  # voxels around a bone, for closing and for a surface that needs an outside
_CLOSING = 3  # voxels: bridges leaks in the thin cortex of cancellous ends, no true hollow
_SOFT_HU = 50.0  # muscle, fluid, cartilage
_AIR_BELOW_HU = -300.0  # darker than fat
_THINNEST = 2.0  # voxels of depth a bone must have somewhere: cords and wires have less


@dataclass(frozen=True, eq=False)
class IsolatedBone:
    """One bone of a scan.

    Attributes
    ----------
    mask : (I, J, K) bool, the bone with its inside filled, on the grid of ``volume``.
    volume : the crop of the scan around it. Outside the bone and its rim of one voxel it is
        air; the rim keeps the partial volume of the surface, but nothing of a neighbour.
    offset : index in the scan of the crop's first voxel.
    length_mm : extent along the bone's longest axis.
    cut_area_mm2 : area of the faces in which the scan's border cuts the bone.
    both_ends : True if the bone is complete, or if a long bone is cut so near its end that
        the end's widening is in the scan (a malleolus without its tip).
    kind : "tibia", "fibula", "femur", "patella", or None where the scan does not tell.
    reason : why this kind, or why none.
    side : the side of the body, or None where the scan does not tell.
    warnings : what was doubtful, in words.
    """

    mask: NDArray[np.bool_]
    volume: Volume
    offset: tuple[int, int, int]
    length_mm: float
    cut_area_mm2: float
    both_ends: bool
    kind: str | None = None
    reason: str = ""
    side: Side | None = None
    warnings: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """True if the scan's border does not cut the bone."""
        return self.cut_area_mm2 == 0.0

    @property
    def voxel_to_world(self) -> NDArray[np.float64]:
        """(4, 4) index in ``mask`` and ``volume`` -> LPS mm."""
        return self.volume.voxel_to_world


def isolate_bones(
    volume: Volume,
    *,
    threshold_hu: float = THRESHOLD_HU,
    min_length_mm: float = MIN_LENGTH_MM,
    progress: Progress | None = None,
) -> list[IsolatedBone]:
    """Find every bone of a scan, the most voluminous first.

    Parameters
    ----------
    volume : the scan in HU; left unchanged.
    threshold_hu : what counts as bone before insides are filled. Raise it where contrast
        agent or metal joins bones, lower it for very poor bone.
    min_length_mm : shorter pieces are left out (diagonal of the bounding box).
    progress : called with (what is done, fraction done in 0..1).

    Returns an empty list where nothing is bright, long and thick enough.
    Raises ValueError for a length that is not positive.
    """
    if not min_length_mm > 0:
        raise ValueError(f"min_length_mm must be positive, not {min_length_mm}")
    bones: list[IsolatedBone] = []
    shapes: list[BoneShape] = []
    for labels, box in label_bones(
        volume, threshold_hu=threshold_hu, min_length_mm=min_length_mm, progress=progress
    ):
        for number, where in enumerate(ndimage.find_objects(labels), 1):
            made = where and _finish(
                volume, labels, number, where, box, threshold_hu, min_length_mm
            )
            if made:
                bones.append(made[0])
                shapes.append(made[1])
    named = [
        replace(bone, kind=name.kind, reason=name.reason, side=name.side,
                warnings=bone.warnings + name.warnings)
        for bone, name in zip(bones, name_bones(shapes))
    ]  # fmt: skip
    return sorted(named, key=lambda bone: -int(np.count_nonzero(bone.mask)))


def _finish(
    volume: Volume,
    labels: Labels,
    number: int,
    where: Box,
    box: Box,
    threshold_hu: float,
    min_length_mm: float,
) -> tuple[IsolatedBone, BoneShape] | None:
    """Close and fill one bone; None if it is too small or thin to be one."""
    low = [max(s.start - _MARGIN, 0) for s in where]
    high = [min(s.stop + _MARGIN, n) for s, n in zip(where, labels.shape)]
    part = labels[tuple(slice(a, b) for a, b in zip(low, high))]
    others = (part > 0) & (part != number)
    offset = tuple(int(a + s.start) for a, s in zip(low, box))
    end = tuple(int(b + s.start) for b, s in zip(high, box))
    crop = volume.crop((offset[0], offset[1], offset[2]), (end[0], end[1], end[2]))
    # Marrow is found anew: what the split counted to it near a joint may be the joint's.
    own = (part == number) & (crop.volume_hu > threshold_hu)
    if not own.any():
        return None
    mask = _largest(_trim(_close_and_fill(own, others), crop.volume_hu))
    shape = measure_bone(mask, crop.voxel_to_world, _borders(crop, offset, volume))
    padded = np.pad(mask, 3, mode="edge")
    if shape.length_mm < min_length_mm or not _thick(padded):
        return None
    kept = np.where(_with_rim(mask) & ~others, crop.volume_hu, AIR_HU)
    alone = Volume(kept.astype(crop.volume_hu.dtype), crop.voxel_to_world)
    warnings = []
    if shape.cut_area_mm2:
        warnings.append(
            f"cut by the scan's border: {shape.cut_area_mm2 / 100:.1f} cm² of its section"
        )
    bone = IsolatedBone(
        mask=mask,
        volume=alone,
        offset=(offset[0], offset[1], offset[2]),
        length_mm=shape.length_mm,
        cut_area_mm2=shape.cut_area_mm2,
        both_ends=shape.both_ends,
        warnings=tuple(warnings),
    )
    return bone, shape


def _close_and_fill(mask: Bools, others: Bools) -> Bools:
    """The bone as one solid body, its leaks closed.

    Closing would also fill the joint between two bones, so near a neighbour only what the
    bone itself encloses is added.
    """
    filled = fill_inside(mask)
    joints = ndimage.binary_dilation(others, iterations=2)
    return fill_inside(filled | (fill_inside(close_gaps(filled, _CLOSING)) & ~joints)) & ~others


def _trim(mask: Bools, volume_hu: NDArray[np.float32] | NDArray[np.int16]) -> Bools:
    """Take off the outermost voxels that are more soft tissue than bone.

    The threshold is low, for the sake of thin cortices, so a thick one seems to begin half a
    voxel too far out. Its edge is where the HU are half-way between inside and outside.
    """
    skin = mask & ~ndimage.binary_erosion(mask, border_value=1)
    brightest = ndimage.maximum_filter(volume_hu, size=5).astype(np.float32)
    darkest = ndimage.minimum_filter(volume_hu, size=5)
    outside = np.where(darkest < _AIR_BELOW_HU, darkest, _SOFT_HU)  # a bare bone lies in air
    return mask & ~(skin & (volume_hu < (brightest + outside) / 2))


def _largest(mask: Bools) -> Bools:
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def _thick(padded: Bools) -> bool:
    """True if a ball of ``_THINNEST`` voxels fits somewhere inside."""
    return bool(ndimage.distance_transform_edt(padded).max() > _THINNEST)


def _with_rim(mask: Bools) -> Bools:
    return np.asarray(ndimage.binary_dilation(mask, ndimage.generate_binary_structure(3, 2)))


def _borders(crop: Volume, offset: tuple[int, ...], volume: Volume) -> list[tuple[int, int]]:
    """(axis, 0 or -1) of the crop's faces that are faces of the scan."""
    starts = [(axis, 0) for axis in range(3) if offset[axis] == 0]
    ends = [(a, -1) for a in range(3) if offset[a] + crop.shape[a] == volume.shape[a]]
    return starts + ends
