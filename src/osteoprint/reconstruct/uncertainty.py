"""How well each point of a reconstructed surface is known.

The posterior of a fit is taken to be normal. What shows of it is the part along the surface's
normal that no rigid motion takes away: surfaces are compared after alignment. What the
parameters cannot say is added with the spread it has in known bones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from osteoprint.reconstruct.bone_model import BoneModel, vertex_areas
from osteoprint.reconstruct.fitting import Fit

Floats = NDArray[np.float64]

# By how much deviations are larger than the posterior says: pixels tell less than they seem to,
# and a posterior knows nothing of what is wrong with the model; modes alone do better than the
# widened shares beyond them suggest. Learnt from known bones, fitted with a model of others.
REFINED_FACTOR, STATISTICAL_FACTOR = 1.06, 0.76


def deviation_mm(model: BoneModel, found: Fit) -> Floats:
    """(n,) standard deviation of each vertex along its normal, mm.

    Parameters
    ----------
    model : what was fitted.
    found : the fit, with its information.
    """
    state = found.state
    modes, functions = len(state.coefficients), len(state.beyond)
    covariance = np.linalg.inv(found.information)[: modes + functions, : modes + functions]
    directions = _along_normals(model, modes, functions)
    directions = _without_rigid(model, directions)
    variance = np.einsum("nq,qp,np->n", directions, covariance, directions, optimize=True)
    variance += model.rest_mm**2
    unfitted = model.functions[functions:] * model.spread_mm[functions:, None]
    variance += (unfitted**2).sum(axis=0)
    factor = REFINED_FACTOR if functions else STATISTICAL_FACTOR
    return np.asarray(factor * np.sqrt(np.maximum(variance, 0.0)))


def expected_rms_mm(model: BoneModel, deviation: Floats) -> float:
    """The surface RMS to be expected, mm, from (n,) deviations."""
    areas = vertex_areas(model.shape.mean, model.shape.faces)
    return float(np.sqrt(np.average(deviation**2, weights=areas)))


def _along_normals(model: BoneModel, modes: int, functions: int) -> Floats:
    """(n, q) mm: how vertices move along their normals with each parameter, one SD."""
    shape = model.shape
    known = np.einsum("knx,nx->nk", shape.modes[:modes], model.normals) * shape.deviations[:modes]
    beyond = (model.functions[:functions] * model.spread_mm[:functions, None]).T
    return np.concatenate([known, beyond], axis=1)


def _without_rigid(model: BoneModel, directions: Floats) -> Floats:
    """What is left of (n, q) motions along normals once the surface is aligned again."""
    points, normals = model.shape.mean, model.normals
    rigid = np.concatenate([normals, np.cross(points, normals) / model.length_mm], axis=1)
    weights = vertex_areas(points, model.shape.faces)[:, None]
    fitted = np.linalg.solve(rigid.T @ (weights * rigid), rigid.T @ (weights * directions))
    return np.asarray(directions - rigid @ fitted)
