"""Soft tissue around a bone: told from bare bone, and what it adds where the bone lies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.linalg import splu

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]

# The bone's blurred edge, as a share of the film's longer side, does not count as tissue; nor do
# so many pixels at the field's edge, where the leaves' shadow is soft.
_EDGE, _RIM = 0.006, 2
# Tissue is smooth: it is worked out on about so many cells along the film's longer side.
_CELLS = 175
# A cell of which less than this was seen beside the bone is not known.
_SEEN = 0.3
# How much a stiff plate is also pulled flat, as a membrane is: without, it swings up where the
# bone lies at the field's edge, with more, it sags under the bone.
_TENSION = 0.01


def tissue_around(image: Floats, bone: Bools, inside: Bools) -> Floats:
    """What soft tissue alone would show: what is seen beside the bone, carried under it.

    A limb is thickest in its middle, where the bone lies. What is carried is therefore not only
    the level beside the bone but also its slope: a thin plate, held by what was seen around it
    (Duchon's spline, with a little tension).

    Parameters
    ----------
    image : (rows, columns) line integrals or what comes near them, air 0.
    bone : (rows, columns) bool.
    inside : (rows, columns) bool, the exposed field.

    Returns
    -------
    (rows, columns) float32, 0 outside of the field, and under a bone around which nothing is seen.
    """
    size = max(image.shape)
    hidden = ndimage.binary_dilation(bone, iterations=max(2, round(_EDGE * size))) & inside
    seen = ndimage.binary_erosion(inside, iterations=_RIM, border_value=1) & ~hidden
    edge = max(1, round(size / _CELLS))
    share = _cells(seen, edge)
    known = share >= _SEEN
    level = np.where(known, _cells(np.where(seen, image, 0), edge) / np.maximum(share, _SEEN), 0)
    plate = _plate(level, known, _cells(hidden, edge) > 0)
    out = np.asarray(image * inside, dtype=np.float32)
    at = (np.argwhere(hidden).T + 0.5) / edge - 0.5
    under = ndimage.map_coordinates(plate, at, order=1, mode="nearest")
    out[hidden] = np.maximum(under, 0.0)
    return out


def _cells(image: NDArray[np.generic], edge: int) -> NDArray[np.float64]:
    """Means over square blocks; what is missing of those at the end counts as 0."""
    rows, columns = (-(-n // edge) for n in image.shape)
    pad = [(0, n * edge - m) for n, m in zip((rows, columns), image.shape, strict=True)]
    blocks = np.pad(image.astype(np.float64), pad).reshape(rows, edge, columns, edge)
    return np.asarray(blocks.mean(axis=(1, 3)))


def _plate(level: NDArray[np.float64], known: Bools, hidden: Bools) -> NDArray[np.float64]:
    """`level` where it is known; where it is hidden, a thin plate through what is known around.

    A plate that nothing holds is 0.
    """
    part, _ = ndimage.label(known | hidden)
    held = np.isin(part, np.unique(part[known]))
    wanted = hidden & ~known & held
    if not wanted.any():
        return np.where(known, level, 0.0)
    # Two cells around it are all that a plate feels.
    used = ndimage.binary_dilation(wanted, np.ones((3, 3)), iterations=2) & (known | wanted)
    number = np.full(used.shape, -1)
    number[used] = np.arange(used.sum())
    pairs = [
        np.stack([a, b])[:, (a >= 0) & (b >= 0)]
        for a, b in ((number[1:], number[:-1]), (number[:, 1:], number[:, :-1]))
    ]
    one, other = np.concatenate(pairs, axis=1)
    links = sparse.coo_matrix((np.ones(one.size), (one, other)), shape=(used.sum(),) * 2)
    links = (links + links.T).tocsr()
    flat = sparse.diags(np.asarray(links.sum(axis=1)).ravel()) - links
    stiff = (flat @ flat + _TENSION * flat).tocsr()[wanted[used]]
    free, fixed = np.flatnonzero(wanted[used]), np.flatnonzero(~wanted[used])
    factors = splu(
        stiff[:, free].tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )  # fmt: skip
    out = np.where(known, level, 0.0)
    out[wanted] = factors.solve(-stiff[:, fixed] @ level[used][fixed])
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
