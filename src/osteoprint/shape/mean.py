"""The mean of a set of bones without point correspondence: a baseline, not a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from osteoprint.ct.phantom import occupancy
from osteoprint.ct.surface import surface_from_level
from osteoprint.ct.volume import Volume


def mean_shape(surfaces: Sequence[trimesh.Trimesh], *, cells_along: int = 220) -> trimesh.Trimesh:
    """The zero level of the bones' mean signed distance, each first scaled to the mean box.

    Parameters
    ----------
    surfaces : closed surfaces in their anatomical frames (mm), the same kind and side.
    cells_along : grid cells along the mean bone.

    Returns
    -------
    One closed surface in the anatomical frame. Raises ValueError for no surfaces.
    """
    if not surfaces:
        raise ValueError("a mean needs at least one surface")
    boxes = np.array([s.bounds for s in surfaces])
    size = (boxes[:, 1] - boxes[:, 0]).mean(axis=0)
    cell = float(size[0] / cells_along)
    shape = np.ceil(size / cell).astype(int) + 9
    matrix = np.diag([cell, cell, cell, 1.0])
    matrix[:3, 3] = -(shape - 1) / 2 * cell
    total = np.zeros(shape)
    for surface, (low, high) in zip(surfaces, boxes, strict=True):
        vertices = (surface.vertices - (low + high) / 2) * (size / (high - low))
        scaled = trimesh.Trimesh(vertices, surface.faces, process=False)
        total += _signed_depth(occupancy(scaled, tuple(shape), matrix), cell)
    return surface_from_level(Volume((total / len(surfaces)).astype(np.float32), matrix), 0.0)


def _signed_depth(share: NDArray[np.float32], cell: float) -> NDArray[np.float64]:
    """Signed distance in mm, inside positive, sub-cell at the surface through the share."""
    inside = share >= 0.5
    depth = distance_transform_edt(inside) - distance_transform_edt(~inside)
    edge = np.abs(depth) <= 1.0
    depth = np.where(edge, share - 0.5, depth - 0.5 * np.sign(depth))
    return np.asarray(depth * cell)
