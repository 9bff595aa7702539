"""Bones that never were: a known bone, smoothly changed, stands for another individual.

Two dozen bones do not show a network what a little longer, a little more twisted or a little
thicker at one end looks like. A bone is drawn out along its axes, turned about its shaft by an
angle that changes along it, and moved by a sum of long waves: nothing folds, nothing tears, and
every point of the bone has its place on the changed one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from osteoprint.ct.volume import AIR_HU, Volume
from osteoprint.frames import AnatomicalFrame, apply

Floats = NDArray[np.float64]

# Longer bones are thicker too, by less (allometry), with a spread of their own.
_ALLOMETRY, _THICKNESS = 0.6, 0.04
# A bone is made longer or shorter by no more than this (its logarithm).
_LONGER = 0.12
# Anteversion of the femur has a standard deviation of 7 to 10 degrees between people.
_TWIST_DEG = 6.0
# Waves: so many, none shorter than this part of the length; what they move points by, RMS, as a
# part of the length. Their steepness stays below a fifth: far from folding.
_WAVES, _SHORTEST = 24, 0.12
_LEAST, _MOST = 0.001, 0.006
# A change is undone step by step until points stay where they are.
_NEAR_MM, _ITERATIONS = 0.005, 20
# A change is that smooth: it is worked out at points so far apart, as a part of the length, and
# taken to be linear between them.
_LATTICE = 0.03


@dataclass(frozen=True, eq=False)
class Variation:
    """A smooth change of a bone, in its anatomical frame.

    First the waves, then the twist, then the stretch.

    Attributes
    ----------
    stretch : (3,) factors along the axes.
    twist : radians per mm along the shaft.
    waves : (w, 3) radians per mm.
    phases : (w,) radians.
    moves_mm : (w, 3) amplitudes.
    """

    stretch: Floats
    twist: float
    waves: Floats
    phases: Floats
    moves_mm: Floats

    @classmethod
    def none(cls) -> Variation:
        """The bone as it is."""
        nothing = np.zeros((0, 3))
        return cls(np.ones(3), 0.0, nothing, np.zeros(0), nothing)

    @classmethod
    def draw(
        cls, length_mm: float, rng: np.random.Generator, lengths_mm: tuple[float, float]
    ) -> Variation:
        """A change of a bone of this length.

        What comes out is about as long as ``lengths_mm``, least and greatest, allow.
        """
        low, high = (float(np.log(limit / length_mm)) for limit in lengths_mm)
        along = rng.uniform(np.clip(low, -_LONGER, 0.0), np.clip(high, 0.0, _LONGER))
        wide, deep = _ALLOMETRY * along + rng.normal(0.0, _THICKNESS, 2)
        directions = rng.normal(size=(_WAVES, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        waves_mm = length_mm * np.exp(rng.uniform(np.log(_SHORTEST), 0.0, _WAVES))
        moves = rng.normal(size=(_WAVES, 3)) * waves_mm[:, None]
        share = np.exp(rng.uniform(np.log(_LEAST), np.log(_MOST)))
        moves *= share * length_mm / np.sqrt((moves**2).sum() / 2)
        return cls(
            np.exp([along, wide, deep]),
            float(np.deg2rad(rng.normal(0.0, _TWIST_DEG)) / length_mm),
            directions * (2 * np.pi / waves_mm)[:, None],
            rng.uniform(0.0, 2 * np.pi, _WAVES),
            moves,
        )

    def __call__(self, points: Floats) -> Floats:
        """(n, 3) mm in the bone's anatomical frame -> where they are in the changed bone."""
        moved = points + self._moved_by(points)
        return np.asarray(_turned(moved, self.twist * moved[:, 0]) * self.stretch)

    def undone(self, points: Floats) -> Floats:
        """The inverse, to a hundredth of a millimetre: where (n, 3) points come from."""
        pulled = points / self.stretch
        straight = _turned(pulled, -self.twist * pulled[:, 0])
        before = straight
        # The waves are flat: what they move is nearly the same before and after.
        for _ in range(_ITERATIONS):
            last, before = before, straight - self._moved_by(before)
            if not len(before) or np.abs(before - last).max() < _NEAR_MM:
                break
        return np.asarray(before)

    def _moved_by(self, points: Floats) -> Floats:
        return np.asarray(np.sin(points @ self.waves.T + self.phases) @ self.moves_mm)


def _turned(points: Floats, angle: Floats) -> Floats:
    """(n, 3) points, each turned about the long axis by its own angle (n,), radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    x, y, z = points.T
    return np.stack([x, cos * y - sin * z, sin * y + cos * z], axis=1)


def varied(volume: Volume, frame: AnatomicalFrame, variation: Variation) -> Volume:
    """The scan of the changed bone, float32 HU.

    Parameters
    ----------
    volume : the scan of the bone.
    frame : its anatomical frame; it holds for the changed bone too, as far as the change leaves
        the bone in place.
    variation : the change.

    Returns
    -------
    A grid along the anatomical axes, with the smallest spacing of the old one, around all that
    was in it. Where it holds nothing of the old one is air.
    """
    spacing = float(volume.spacing_mm.min())
    corner = np.array(volume.shape) - 1.0
    inside = apply(frame.world_to_bone @ volume.voxel_to_world, _grid([9, 9, 9]) * corner)
    outer = variation(inside)
    low = outer.min(axis=0) - spacing
    shape = np.ceil((outer.max(axis=0) + spacing - low) / spacing).astype(int) + 1
    step = _LATTICE * frame.length_mm
    few = [max(int(np.ceil(n * spacing / step)), 2) + 1 for n in shape]
    lattice = _grid(few) * (shape - 1.0) * spacing + low
    to_voxel = volume.world_to_voxel @ frame.bone_to_world
    source = apply(to_voxel, variation.undone(lattice)).reshape(*few, 3)
    at = np.meshgrid(
        *[np.linspace(0, m - 1, n) for n, m in zip(shape, few, strict=True)], indexing="ij"
    )
    voxels = np.stack([map_coordinates(source[..., axis], at, order=1) for axis in range(3)])
    hu = map_coordinates(volume.volume_hu.astype(np.float32), voxels, order=1, cval=AIR_HU)
    placed = np.diag([spacing, spacing, spacing, 1.0])
    placed[:3, 3] = low
    return Volume(hu, frame.bone_to_world @ placed)


def _grid(counts: list[int]) -> Floats:
    """(n, 3) points spread evenly over the unit cube, so many along each axis."""
    axes = np.meshgrid(*[np.linspace(0.0, 1.0, n) for n in counts], indexing="ij")
    return np.stack(axes, axis=-1).reshape(-1, 3)
