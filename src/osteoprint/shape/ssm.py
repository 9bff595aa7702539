"""A statistical shape model: the mean of corresponding shapes, their modes, what is probable.

Shapes are turned and moved onto each other (generalised Procrustes), never scaled: size is a
part of shape. Their coordinates are then taken as drawn from a normal distribution, whose
axes are the modes (Cootes et al., Comput Vis Image Underst 1995;61:38).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import igl
import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import eigsh

from osteoprint.errors import InputError
from osteoprint.frames import Side, anatomical_frame, apply
from osteoprint.shape.alignment import kabsch
from osteoprint.shape.model_file import ModelFile

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_FILE = ModelFile("osteoprint shape model", 1)
ARRAYS = ("mean", "faces", "modes", "deviations")


@dataclass(frozen=True, eq=False)
class ShapeModel:
    """Mean and modes of corresponding shapes, in one anatomical frame.

    Attributes
    ----------
    mean : (n, 3) float64, mm, in the anatomical frame of the mean bone.
    faces : (m, 3) int64, wound outwards.
    modes : (k, n, 3) float64, orthonormal over all coordinates, the largest spread first.
    deviations : (k,) float64, mm: standard deviation along each mode.
    shapes : how many shapes it was built from.
    bone, side : what they are; None where this was not said.
    """

    mean: Floats
    faces: Ints
    modes: Floats
    deviations: Floats
    shapes: int
    bone: str | None = None
    side: Side | None = None

    @classmethod
    def build(
        cls,
        shapes: Floats | Sequence[Floats],
        faces: Ints,
        *,
        bone: str | None = None,
        side: Side | None = None,
        modes: int | None = None,
    ) -> ShapeModel:
        """The model of (s, n, 3) corresponding shapes, mm, each in any pose.

        Parameters
        ----------
        shapes : row by row the same points; all of one side (mirror the others before).
        faces : (m, 3) common to all.
        bone, side : what they are, for the anatomical frame and the file.
        modes : at most so many are kept; None for all, s - 1.

        Raises
        ------
        InputError : fewer than two shapes, of different size, or not finite.
        """
        aligned = procrustes(shapes)
        mean = aligned.mean(axis=0)
        pose = _frame_of(mean, faces, bone, side)
        aligned = np.stack([apply(pose, shape) for shape in aligned])
        mean = aligned.mean(axis=0)
        rows = (aligned - mean).reshape(len(aligned), -1)
        _, spread, vectors = np.linalg.svd(rows, full_matrices=False)
        kept = min(len(aligned) - 1, modes if modes is not None else len(aligned))
        return cls(
            mean=mean,
            faces=np.ascontiguousarray(faces, np.int64),
            modes=vectors[:kept].reshape(kept, -1, 3),
            deviations=spread[:kept] / np.sqrt(len(aligned) - 1),
            shapes=len(aligned),
            bone=bone,
            side=side,
        )

    @property
    def mesh(self) -> trimesh.Trimesh:
        """The mean as a surface, mm, in the anatomical frame."""
        return trimesh.Trimesh(self.mean, self.faces, process=False)

    def truncated(self, modes: int) -> ShapeModel:
        """The same model with its first `modes` modes only."""
        return ShapeModel(
            self.mean,
            self.faces,
            self.modes[:modes],
            self.deviations[:modes],
            self.shapes,
            self.bone,
            self.side,
        )

    def instance(self, coefficients: Floats) -> Floats:
        """(n, 3) mm: the shape with these (j,) coefficients, j <= k, in standard deviations."""
        coefficients = np.asarray(coefficients, np.float64)
        if coefficients.ndim != 1 or len(coefficients) > len(self.modes):
            raise InputError(
                "coefficients",
                f"have shape {coefficients.shape}",
                f"give at most {len(self.modes)} numbers",
            )
        used = len(coefficients)
        return self.mean + np.tensordot(
            coefficients * self.deviations[:used], self.modes[:used], axes=1
        )

    def sample(self, rng: np.random.Generator) -> Floats:
        """(n, 3) mm: a shape drawn from the model."""
        return self.instance(rng.standard_normal(len(self.modes)))

    def coefficients(self, shape: Floats) -> Floats:
        """(k,) coefficients, in standard deviations, of the model's shape nearest to `shape`.

        `shape` (n, 3), mm, corresponds to the mean and may lie in any pose.
        """
        _, values = self.fitted(shape)
        return values

    def fitted(self, shape: Floats) -> tuple[Floats, Floats]:
        """The pose shape_to_model, (4, 4) rigid, and the coefficients, (k,), nearest to `shape`.

        Turned onto the mean first, then onto the model's own answer until nothing changes.

        Raises InputError if `shape` does not have the mean's points.
        """
        shape = self._checked(shape)
        goal = self.mean
        pose = kabsch(shape, goal)
        flat = self.modes.reshape(len(self.modes), self.mean.size)
        values = np.zeros(len(flat))
        for _ in range(50):
            values = flat @ (apply(pose, shape) - self.mean).ravel()
            goal = self.mean + np.tensordot(values, self.modes, axes=1)
            pose, before = kabsch(shape, goal), pose
            if np.abs(apply(pose, shape) - apply(before, shape)).max() < 1e-6:
                break
        return pose, values / np.maximum(self.deviations, 1e-12)

    def posterior(self, points: Ints, places: Floats, noise_mm: float) -> Posterior:
        """What is known of the shape once some of its points have been seen.

        Parameters
        ----------
        points : (j,) which vertices were seen.
        places : (j, 3) mm where, in the model's frame.
        noise_mm : standard deviation of each coordinate seen, above 0.

        Returns
        -------
        The normal distribution of the coefficients, and of the shape.

        Raises
        ------
        InputError : indices and places do not match, or noise that is not positive.
        """
        points, places = np.asarray(points, np.int64), np.asarray(places, np.float64)
        if points.ndim != 1 or places.shape != (len(points), 3):
            raise InputError("points seen", "do not match their places", "give (j,) and (j, 3)")
        if len(points) and (points.min() < 0 or points.max() >= len(self.mean)):
            raise InputError(
                "points seen", "are not in the model", f"number below {len(self.mean)}"
            )
        if not noise_mm > 0:
            raise InputError("noise_mm", f"is {noise_mm}", "give a number above 0")
        seen = (self.modes * self.deviations[:, None, None])[:, points].reshape(len(self.modes), -1)
        precision = np.eye(len(seen)) + seen @ seen.T / noise_mm**2
        covariance = np.asarray(np.linalg.inv(precision), np.float64)
        gap = (places - self.mean[points]).ravel()
        return Posterior(self, covariance @ (seen @ gap) / noise_mm**2, covariance)

    def _checked(self, shape: Floats) -> Floats:
        shape = np.asarray(shape, np.float64)
        if shape.shape != self.mean.shape:
            raise InputError(
                "shape",
                f"has points {shape.shape}",
                f"give {self.mean.shape}, corresponding to the mean",
            )
        return shape

    def save(self, path: Path) -> None:
        """Write the model as safetensors, its header in JSON; whole or not at all."""
        _FILE.write(path, self.told, self.arrays)

    @property
    def told(self) -> dict[str, Any]:
        """What a file says of the model, besides its arrays."""
        return {"shapes": self.shapes, "bone": self.bone, "side": self.side}

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The model's arrays by name."""
        return {name: getattr(self, name) for name in ARRAYS}

    @classmethod
    def load(cls, path: Path) -> ShapeModel:
        """Read what :meth:`save` wrote.

        Raises ModelError if there is no such file, or it is not a shape model of this version.
        """
        about, arrays = _FILE.read(path, ARRAYS)
        try:
            model = cls.of(about, arrays)
        except (KeyError, ValueError, TypeError) as error:
            raise _FILE.damaged(path) from error
        if not model.consistent:
            raise _FILE.damaged(path)
        return model

    @classmethod
    def of(cls, told: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> ShapeModel:
        """The model of :attr:`told` and :attr:`arrays`; what else is in them is left.

        Raises KeyError, ValueError or TypeError where they are not a model's.
        """
        return cls(
            **{name: arrays[name] for name in ARRAYS},
            shapes=int(told["shapes"]),
            bone=told["bone"],
            side=None if told["side"] is None else Side(told["side"]),
        )

    @property
    def consistent(self) -> bool:
        """Do the arrays belong together?"""
        points, modes = len(self.mean), len(self.modes)
        return bool(
            self.mean.shape == (points, 3)
            and self.faces.ndim == 2
            and self.faces.shape[1] == 3
            and self.modes.shape == (modes, points, 3)
            and self.deviations.shape == (modes,)
            and all(np.isfinite(a).all() for a in (self.mean, self.modes, self.deviations))
            and self.faces.size > 0
            and 0 <= self.faces.min() <= self.faces.max() < points
        )


@dataclass(frozen=True, eq=False)
class Posterior:
    """The shapes that agree with what was seen: a normal distribution.

    Attributes
    ----------
    model : the model it belongs to.
    coefficients : (k,) mean, in standard deviations of the model.
    covariance : (k, k) of the coefficients.
    """

    model: ShapeModel
    coefficients: Floats
    covariance: Floats

    @property
    def mean(self) -> Floats:
        """(n, 3) mm: the most probable shape."""
        return self.model.instance(self.coefficients)

    def point_covariance(self) -> Floats:
        """(n, 3, 3) mm²: how well each vertex is known."""
        basis = self.model.modes * self.model.deviations[:, None, None]
        return np.asarray(
            np.einsum("knx,kl,lny->nxy", basis, self.covariance, basis, optimize=True)
        )

    def sample(self, rng: np.random.Generator) -> Floats:
        """(n, 3) mm: a shape that agrees with what was seen."""
        root = np.linalg.cholesky(self.covariance)
        return self.model.instance(
            self.coefficients + root @ rng.standard_normal(len(self.coefficients))
        )


def procrustes(shapes: Floats | Sequence[Floats], *, tolerance_mm: float = 1e-6) -> Floats:
    """(s, n, 3) corresponding shapes turned and moved onto their common mean; never scaled.

    Raises InputError for fewer than two shapes, of different size, or not finite.
    """
    if len(shapes) < 2 or len({np.shape(shape) for shape in shapes}) != 1:
        raise InputError("shapes", "do not correspond", "give at least two, of the same points")
    aligned = np.array(shapes, dtype=np.float64)
    if aligned.ndim != 3 or aligned.shape[2] != 3 or not np.isfinite(aligned).all():
        raise InputError("shapes", "are not finite (n, 3) points", "give vertices in mm")
    mean = aligned[0]
    for _ in range(100):
        aligned = np.stack([apply(kabsch(shape, mean), shape) for shape in aligned])
        moved = aligned.mean(axis=0)
        # The mean must not wander: it is turned back onto the one before.
        moved = apply(kabsch(moved, mean), moved)
        change = float(np.abs(moved - mean).max())
        mean = moved
        if change < tolerance_mm:
            break
    return np.stack([apply(kabsch(shape, mean), shape) for shape in aligned])


def _frame_of(mean: Floats, faces: Ints, bone: str | None, side: Side | None) -> Floats:
    """(4, 4) rigid, from where the mean lies into its anatomical frame; centred if it has none."""
    try:
        return anatomical_frame(mean, faces, bone=bone, side=side, source="mean").world_to_bone
    except InputError:
        matrix = np.eye(4)
        matrix[:3, 3] = -(mean.min(axis=0) + mean.max(axis=0)) / 2
        return matrix


def smooth_basis(vertices: Floats, faces: Ints, count: int) -> tuple[Floats, Floats]:
    """The smoothest functions on a surface: for what lies beyond a model's modes.

    The first eigenfunctions of the Laplace-Beltrami operator, by the cotangent Laplacian and
    the lumped mass matrix (Vallet and Levy, Comput Graph Forum 2008;27:251).

    Parameters
    ----------
    vertices, faces : (n, 3) mm and (m, 3), a closed surface.
    count : how many functions, the constant among them.

    Returns
    -------
    (count,) eigenvalues in 1/mm², rising from 0, and (n, count) functions, whose mean square
    over the surface is 1.

    Raises
    ------
    InputError : `count` is not between 1 and n - 2.
    """
    if not 1 <= count <= len(vertices) - 2:
        raise InputError("count", f"is {count}", f"ask for 1 to {len(vertices) - 2} functions")
    vertices = np.ascontiguousarray(vertices, np.float64)
    faces = np.ascontiguousarray(faces, np.int64)
    stiffness = -sparse.csc_matrix(igl.cotmatrix(vertices, faces))
    mass = sparse.csc_matrix(igl.massmatrix(vertices, faces, igl.MASSMATRIX_TYPE_VORONOI))
    area = float(mass.diagonal().sum())
    # Just below zero, where the operator is not singular.
    start = np.ones(len(vertices))
    values, functions = eigsh(stiffness, count, mass, sigma=-1e-3 / area, which="LM", v0=start)
    order = np.argsort(values)
    functions = functions[:, order] * np.sqrt(area)
    functions *= np.where(functions[np.abs(functions).argmax(axis=0), np.arange(count)] < 0, -1, 1)
    return np.maximum(values[order], 0.0), functions
