"""How good a shape model is: compactness, generality, specificity.

After Davies et al., IEEE Trans Med Imaging 2002;21:525. Distances are between corresponding
vertices, RMS over the vertices of a shape, in mm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from osteoprint.frames import apply
from osteoprint.shape.alignment import kabsch
from osteoprint.shape.ssm import ShapeModel, procrustes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def compactness(model: ShapeModel) -> Floats:
    """(k,) part of the whole variance that the first 1, 2, ... k modes hold."""
    variance = np.cumsum(model.deviations**2)
    return np.asarray(variance / variance[-1])


def generality(shapes: Floats, faces: Ints, modes: Sequence[int]) -> Floats:
    """(s, len(modes)) mm: how near the model of all other shapes comes to each shape.

    Parameters
    ----------
    shapes : (s, n, 3) corresponding, mm, any pose.
    faces : (m, 3) common to all.
    modes : with how many modes, each time; 0 is the mean alone.
    """
    left = np.empty((len(shapes), len(modes)))
    for number in range(len(shapes)):
        model = ShapeModel.build(np.delete(shapes, number, axis=0), faces)
        left[number] = unexplained(model, shapes[number], modes)
    return left


def unexplained(model: ShapeModel, shape: Floats, modes: Sequence[int]) -> Floats:
    """(len(modes),) mm: how far the model's nearest shape is, with so many modes each time."""
    result = []
    for count in modes:
        part = model.truncated(count)
        pose, values = part.fitted(shape)
        result.append(_rms(apply(pose, shape), part.instance(values)))
    return np.array(result)


def specificity(
    model: ShapeModel, shapes: Floats, modes: Sequence[int], *, samples: int = 100, seed: int = 0
) -> Floats:
    """(samples, len(modes)) mm: from shapes drawn from the model to the nearest real one.

    Parameters
    ----------
    model : built from `shapes`.
    shapes : (s, n, 3) corresponding, mm, any pose.
    modes : with how many modes, each time.
    samples, seed : how many are drawn, and from which seed.
    """
    real = procrustes(shapes)
    pose = kabsch(real.mean(axis=0), model.mean)
    real = np.stack([apply(pose, shape) for shape in real])
    flat = real.reshape(len(real), -1)
    result = np.empty((samples, len(modes)))
    for column, count in enumerate(modes):
        rng = np.random.default_rng(seed)
        part = model.truncated(count)
        for row in range(samples):
            drawn = part.sample(rng).ravel()
            nearest = np.min(((flat - drawn) ** 2).sum(axis=1))
            result[row, column] = np.sqrt(nearest / len(model.mean))
    return result


def _rms(first: Floats, second: Floats) -> float:
    """RMS over vertices of the distance between them."""
    return float(np.sqrt(((first - second) ** 2).sum(axis=1).mean()))
