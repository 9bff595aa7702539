"""Soft tissue around a bone: told from bare bone, and taken off.

A limb is nearly elliptical across, so its chord, squared, is a parabola across the film:
(2 mu)^2 (w^2 - x^2). Squared line integrals of muscle and fat are therefore fitted with one
parabola per row, from below, since bone only ever adds to them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]

# How much of a residual above the parabola counts: bone does not, tissue and noise do.
_ABOVE = 0.02
_ROUNDS = 24
# Rows of so large a part of the film's height share one parabola.
_SHARED_ROWS = 0.02


def tissue_level(image: Floats, body: Bools, known_bone: Bools | None = None) -> Floats:
    """What soft tissue alone would show.

    Parameters
    ----------
    image : (rows, columns) line integrals or what comes near them, air 0, bone upright.
    body : (rows, columns) bool, what is not air and not masked.
    known_bone : pixels to leave out of the fit, where they are known.

    Returns
    -------
    (rows, columns) float32, 0 outside of the body.
    """
    rows, columns = image.shape
    hit = np.flatnonzero(body.any(axis=0))
    if hit.size < 5:
        return np.zeros_like(image)
    x = (np.arange(columns) - (hit[0] + hit[-1]) / 2) / ((hit[-1] - hit[0]) / 2)
    powers = x[None, :] ** np.arange(5)[:, None]
    squared = np.square(np.maximum(image, 0.0), dtype=np.float64)
    used: Bools = body if known_bone is None else body & ~known_bone
    reach = 2 * max(2, round(_SHARED_ROWS * rows / 2)) + 1
    weight = used.astype(np.float64)
    fit = np.zeros_like(squared)
    for _ in range(_ROUNDS):
        moments = _shared(weight @ powers.T, reach)
        values = _shared((weight * squared) @ powers[:3].T, reach)
        system = moments[:, np.add.outer(np.arange(3), np.arange(3))]
        scale = np.maximum(moments[:, 0], 1e-9)[:, None, None]
        # A hint of a flat line keeps rows with few pixels of tissue from running away.
        system = system / scale + np.diag([1e-9, 1e-7, 1e-6])
        answer = np.linalg.solve(system, (values / scale[:, 0])[..., None])[..., 0]
        fit = answer @ powers[:3]
        new = used * np.where(squared > fit, _ABOVE, 1.0)
        if np.array_equal(new, weight):
            break
        weight = new
    return np.asarray(np.sqrt(np.maximum(fit, 0.0)) * body, dtype=np.float32)


def has_soft_tissue(image: Floats, body: Bools) -> bool:
    """Whether the shadow on an upright film is that of a limb and not of a bare bone.

    Across the shaft of a bare bone the cortex is bright at both sides and the marrow dark
    between them; across a limb it is darkest at the sides. Compared are the chords that the
    rim and the middle would have in an even cylinder.
    """
    rows = np.flatnonzero(body.any(axis=1))
    if rows.size < 10:
        return False
    low, high = rows[0] + 0.3 * np.ptp(rows), rows[0] + 0.7 * np.ptp(rows)
    votes = []
    for row in range(int(low), int(high) + 1):
        hit = np.flatnonzero(body[row])
        if hit.size < 8:
            continue
        left, right = hit[0] - 0.5, hit[-1] + 0.5
        half = (right - left) / 2
        u = (hit - (left + right) / 2) / half
        chord = image[row, hit] / np.sqrt(np.maximum(1 - u * u, 1e-6))
        rim = (np.abs(u) > 0.7) & (np.abs(u) < 0.92)
        middle = np.abs(u) < 0.3
        if rim.any() and middle.any():
            votes.append(float(np.median(chord[middle]) / max(np.median(chord[rim]), 1e-6)))
    return bool(votes) and float(np.median(votes)) > 0.95


def _shared(values: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    return np.asarray(ndimage.uniform_filter1d(values, reach, axis=0, mode="nearest"))
