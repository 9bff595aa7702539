"""How well each point of a reconstructed surface is known.

What films do not show, a fit takes from the model; how far that is off is learnt from known
bones. Each was kept from a model of all other people's, and would have been drawn towards that
model as far as these films leave room for it: what is left is an error that such films would
make. What pixels leave uncertain, and what the functions cannot say, is added. What counts is
the part along the surface's normal that no rigid motion takes away: surfaces are compared after
alignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from osteoprint.reconstruct.bone_model import BoneModel, vertex_areas
from osteoprint.reconstruct.shot import Shot
from osteoprint.reconstruct.start import lengths_differ

Floats = NDArray[np.float64]

# What films seem to say is worth so much: pixels tell less than they seem to, and what is wrong
# with the model's image is taken for shape, most of all where nothing else decides the shape.
# Learnt from known bones, fitted with a model of others: both films whole; with one film only;
# with a film that cuts the bone; where lengths tell that it leant towards the tube or away.
_WORTH, _ONE_FILM, _CUT, _LEANING = 1 / 1.5, 1 / 8, 1 / 70, 1 / 4
# Of known bones so many would have come out better than the RMS that is feared.
_FEARED = 0.9
# Where shares beyond the modes were fitted, bones differ in what is left by more than the shares'
# own spread makes them: of 29 femora that were left out, nine of ten stayed below so much more.
_APART = 1.25


@dataclass(frozen=True, eq=False)
class Doubt:
    """How far a surface may be off.

    Attributes
    ----------
    deviation_mm : (n,) standard deviation of each vertex along its normal.
    expected_rms_mm : the surface RMS to be expected.
    feared_rms_mm : the surface RMS that nine of ten bones stay below.
    """

    deviation_mm: Floats
    expected_rms_mm: float
    feared_rms_mm: float


def doubt(model: BoneModel, shown: Floats, *, refined: bool) -> Doubt:
    """How far a surface may be off that was fitted to films.

    Parameters
    ----------
    model : what was fitted.
    shown : (j, j) what the films say about the shares of the model's functions, 1/mm², whatever
        the pose may be: the inverse covariance, priors of the shape left out.
    refined : whether the functions were fitted; else only the modes.
    """
    basis = _without_rigid(model, model.functions.T)
    weights = vertex_areas(model.shape.mean, model.shape.faces)
    weights /= weights.sum()
    area = basis.T @ (weights[:, None] * basis)
    beyond = np.diag(model.spread_mm**2) if refined else np.zeros_like(shown)
    errors, mean_square = [], []
    for unlike, others in zip(model.unlike_mm, model.others_mm, strict=True):
        # Shares are drawn to the model: what is left of them, and what noise adds.
        prior = others.T @ others + beyond
        drawn = np.linalg.inv(np.eye(len(prior)) + prior @ shown)
        left = drawn @ unlike
        errors.append(np.outer(left, left) + drawn @ prior @ shown @ drawn @ prior)
        mean_square.append(float(np.sum(errors[-1] * area)))
    rest = float(weights @ model.rest_mm**2)
    variance = np.einsum("nj,jk,nk->n", basis, np.mean(errors, axis=0), basis, optimize=True)
    variance = np.maximum(variance, 0.0) + model.rest_mm**2
    return Doubt(
        np.sqrt(variance),
        float(np.sqrt(weights @ variance)),
        float(np.sqrt(np.quantile(mean_square, _FEARED) + rest)) * (_APART if refined else 1.0),
    )


def worth(shots: Sequence[Shot]) -> float:
    """Which part of what films seem to say about a shape is to be believed, 0 to 1."""
    out = _WORTH
    if len(shots) == 1:
        out *= _ONE_FILM
    if any(any(shot.cut) for shot in shots):
        out *= _CUT
    elif lengths_differ(shots):
        out *= _LEANING
    return out


def shown(model: BoneModel, information: Floats, modes: int, functions: int) -> Floats:
    """(j, j) what :func:`doubt` asks for, from a fit's information with all functions free.

    Parameters
    ----------
    information : (p, p) of `modes` coefficients, `functions` shares and poses, in SD, priors
        included.
    """
    at = slice(modes, modes + functions)
    poses = slice(modes + functions, None)
    films = information[at, at] - np.eye(functions)
    across = information[at, poses]
    films = films - across @ np.linalg.solve(information[poses, poses], across.T)
    spread = np.maximum(model.spread_mm[:functions], 1e-9)
    films = films / spread[:, None] / spread[None]
    # Rounding aside, films take no knowledge away.
    values, vectors = np.linalg.eigh((films + films.T) / 2)
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T)


def _without_rigid(model: BoneModel, directions: Floats) -> Floats:
    """What is left of (n, q) motions along normals once the surface is aligned again."""
    points, normals = model.shape.mean, model.normals
    rigid = np.concatenate([normals, np.cross(points, normals) / model.length_mm], axis=1)
    weights = vertex_areas(points, model.shape.faces)[:, None]
    fitted = np.linalg.solve(rigid.T @ (weights * rigid), rigid.T @ (weights * directions))
    return np.asarray(directions - rigid @ fitted)
