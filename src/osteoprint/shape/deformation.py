"""A statistical deformation model: bones that never were, as the known ones differ.

What smooth waves do to a bone is as likely anywhere and in any direction; real bones differ in
few ways, and near neighbours among many people differ in just these. A shape is drawn as from a
statistical shape model of the known bones, and a known bone is deformed towards it, scan and all
(Rueckert et al., IEEE Trans Med Imaging 2003;22:1014).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import trimesh
from numpy.typing import NDArray

from osteoprint.ct.variation import Variation
from osteoprint.shape.resemblance import Resemblance

Floats = NDArray[np.float64]

# Fewer bones say little about how bones differ; of too different sizes, as of cats and people, or
# children and adults, mixtures are no bones.
FEWEST, _SIZES = 6, 1.5
# No coefficient is drawn further out, in standard deviations.
_FURTHEST = 2.5
# A deformation is a sum of so many waves, in sine and cosine, of lengths between these parts of
# the bone's. They are the same for every bone.
_WAVES, _SHORTEST, _LONGEST = 120, 0.15, 2.0
# What a wave costs, beside what it leaves unexplained; short ones cost more. It is raised until
# the displacement is nowhere steeper than this, mm per mm: the deformation must not fold.
_COST, _STEEPEST = 1e-3, 0.4


@dataclass(frozen=True, eq=False)
class DeformationModel:
    """How known bones of one kind and side differ.

    Attributes
    ----------
    points : (bones, n, 3) mm, the same points on each, in their anatomical frames.
    """

    points: Floats

    @classmethod
    def of(cls, surfaces: Sequence[trimesh.Trimesh]) -> DeformationModel | None:
        """Of closed surfaces in their anatomical frames, mm.

        None for fewer than ``FEWEST``, and where the longest is half as long again as the shortest.
        """
        if len(surfaces) < FEWEST:
            return None
        lengths = [float(surface.extents[0]) for surface in surfaces]
        if max(lengths) > _SIZES * min(lengths):
            return None
        return cls(Resemblance.of(surfaces).points)

    @cached_property
    def sha256(self) -> str:
        """Of the points, to a thousandth of a millimetre."""
        rounded = np.round(self.points, 3) + 0.0
        return hashlib.sha256(rounded.astype("<f8").tobytes()).hexdigest()

    def draw(
        self, bone: int, rng: np.random.Generator, lengths_mm: tuple[float, float]
    ) -> Variation:
        """Bone number `bone` deformed towards a shape that is drawn.

        The shape is as long as ``lengths_mm``, least and greatest, allow, and the bone about so.
        """
        return self.towards(bone, self.shape(rng, lengths_mm))

    def shape(self, rng: np.random.Generator, lengths_mm: tuple[float, float]) -> Floats:
        """(n, 3) mm: the points of a bone that never was."""
        mean = self.points.mean(axis=0)
        weights = rng.normal(size=len(self.points)).clip(-_FURTHEST, _FURTHEST)
        drawn = mean + np.tensordot(weights, self.points - mean, 1) / np.sqrt(len(weights) - 1)
        length = float(np.ptp(drawn[:, 0]))
        return np.asarray(drawn * (np.clip(length, *lengths_mm) / length))

    def towards(self, bone: int, shape: Floats) -> Variation:
        """The smooth change that brings bone number `bone` near (n, 3) points, mm.

        Details of its own remain.
        """
        points = self.points[bone]
        length = float(np.ptp(points[:, 0]))
        stretch = np.ptp(shape, axis=0) / np.ptp(points, axis=0)
        wanted = shape / stretch - points
        waves, phases = _waves(length)
        basis = np.sin(points @ waves.T + phases)
        steep = np.linalg.norm(waves, axis=1) * length
        cost = _COST * len(points)
        while True:
            normal = basis.T @ basis + np.diag(cost * steep**2 / (2 * np.pi) ** 2)
            moves = np.linalg.solve(normal, basis.T @ wanted)
            if _steepness(points, waves, phases, moves) <= _STEEPEST:
                return Variation(stretch, 0.0, waves, phases, moves)
            cost *= 2.0


def _waves(length_mm: float) -> tuple[Floats, Floats]:
    """(2 w, 3) radians per mm and (2 w,) radians: waves all ways, in sine and cosine."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(_WAVES, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lengths = length_mm * np.exp(rng.uniform(np.log(_SHORTEST), np.log(_LONGEST), _WAVES))
    waves = directions * (2 * np.pi / lengths)[:, None]
    return np.tile(waves, (2, 1)), np.repeat([0.0, np.pi / 2], _WAVES)


def _steepness(points: Floats, waves: Floats, phases: Floats, moves: Floats) -> float:
    """The greatest slope of the displacement at (n, 3) points, mm per mm."""
    slopes = np.cos(points @ waves.T + phases)
    gradients = np.einsum("nw,wi,wj->nij", slopes, moves, waves, optimize=True)
    return float(np.linalg.norm(gradients, ord=2, axis=(1, 2)).max())
