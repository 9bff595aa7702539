"""What is fitted to films: a shape's coefficients, and how the bone lies before each film."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from osteoprint.reconstruct.bone_model import BoneModel

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Placing:
    """How a bone lies in a world, and how well that is known.

    Attributes
    ----------
    rotation, shift_mm : (3, 3) and (3,): anatomical frame -> world, as was expected.
    deviation : (6,) standard deviations of a turn about the world's axes (rad) and a shift (mm).
    turn, moved : (3,) rotation vector, rad, and (3,) mm: what was found besides.
    """

    rotation: Floats
    shift_mm: Floats
    deviation: Floats
    turn: Floats
    moved: Floats

    @classmethod
    def expected(cls, rotation: Floats, shift_mm: Floats, deviation: Floats) -> Placing:
        """As expected, and nothing found yet."""
        return cls(rotation, shift_mm, deviation, np.zeros(3), np.zeros(3))

    @property
    def total(self) -> tuple[Floats, Floats]:
        """(3, 3) rotation and (3,) shift, anatomical frame -> world."""
        return Rotation.from_rotvec(self.turn).as_matrix() @ self.rotation, (
            self.shift_mm + self.moved
        )

    def stepped(self, step: Floats) -> Placing:
        """Turned and shifted further by a (6,) step."""
        turn = Rotation.from_rotvec(step[:3]) * Rotation.from_rotvec(self.turn)
        return replace(self, turn=turn.as_rotvec(), moved=self.moved + step[3:])

    @property
    def surprise(self) -> Floats:
        """(6,) what was found, in standard deviations."""
        return np.asarray(np.concatenate([self.turn, self.moved]) / self.deviation)


@dataclass(frozen=True, eq=False)
class State:
    """What is fitted: coefficients in SD, shares of the functions in SD, and the placings."""

    coefficients: Floats
    beyond: Floats
    placings: tuple[Placing, ...]

    def widened(self, modes: int, functions: int) -> State:
        """With so many coefficients, new ones 0, those too many left out."""
        return replace(
            self,
            coefficients=_resized(self.coefficients, modes),
            beyond=_resized(self.beyond, functions),
        )

    def stepped(self, step: Floats) -> State:
        """Changed by a step: coefficients, shares, then six numbers for each placing."""
        k, j = len(self.coefficients), len(self.beyond)
        poses = step[k + j :].reshape(-1, 6)
        return State(
            self.coefficients + step[:k],
            self.beyond + step[k : k + j],
            tuple(p.stepped(s) for p, s in zip(self.placings, poses, strict=True)),
        )

    def vertices(self, model: BoneModel) -> Floats:
        """(n, 3) mm, in the model's frame."""
        return model.surface(self.coefficients, self.beyond * model.spread_mm[: len(self.beyond)])


def _resized(values: Floats, size: int) -> Floats:
    out = np.zeros(size)
    out[: min(size, len(values))] = values[:size]
    return out
