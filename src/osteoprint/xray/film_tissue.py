"""Soft tissue around a bone: told from bare bone, and what it adds where the bone lies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]

# The bone's blurred edge, as a share of the film's longer side, does not count as tissue.
_EDGE = 0.006
# Widths of the averages that carry tissue into the bone, as shares of the same.
_WIDTHS = (0.015, 0.03, 0.06, 0.12)


def tissue_around(image: Floats, bone: Bools, inside: Bools) -> Floats:
    """What soft tissue alone would show: what is seen beside the bone, carried under it.

    Parameters
    ----------
    image : (rows, columns) line integrals or what comes near them, air 0.
    bone : (rows, columns) bool.
    inside : (rows, columns) bool, the exposed field.

    Returns
    -------
    (rows, columns) float32, 0 outside of the field.
    """
    size = max(image.shape)
    hidden = ndimage.binary_dilation(bone, iterations=max(2, round(_EDGE * size)))
    known = (inside & ~hidden).astype(np.float32)
    level = np.where(known > 0, image, 0.0).astype(np.float32)
    missing = hidden & inside
    for width in _WIDTHS:
        weight = _averaged(known, width * size)
        use = missing & (weight > 0.1)
        mean = _averaged(level * known, width * size)
        level[use] = mean[use] / weight[use]
        missing &= ~use
    # Where the averages of two widths meet there is a step: it is smoothed out under the bone.
    smooth = _averaged(level, _WIDTHS[0] * size)
    return np.asarray(np.where(hidden, smooth, level) * inside, dtype=np.float32)


def _averaged(image: Floats, sigma: float) -> Floats:
    """Nearly a Gaussian average: three boxes, whose cost does not grow with their width."""
    width = 2 * round((np.sqrt(4 * sigma**2 + 1) - 1) / 2) + 1
    out = image
    for _ in range(3):
        out = ndimage.uniform_filter(out, width, mode="reflect")
    return out


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
