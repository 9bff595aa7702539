"""A scan becomes labels: which voxel belongs to which bone, neighbours split.

How it works, on a grid that is coarsened only where a scan is very fine:

1. *Solid.* Voxels above a threshold are bone; what they enclose in at least two of the
   three slice directions is marrow. A bone that the scan's border cuts is capped there.
2. *Gaps.* A joint space narrower than the scanner's blur is no longer dark, only darker
   than the bone on both sides. A grey-value closing of three voxels fills such a dip; a
   voxel that rises by more than ``GAP_DEPTH`` of the filled value is a gap. The measure is
   made in voxels, because that is the scale on which a scanner hides a joint.
3. *Cores.* What is left is eroded in steps; where a piece falls into two, both become seeds.
   Too many seeds are no harm: a watershed grows them back, and
4. *Joins.* two neighbours are made one again unless much of their common face is gap, or
   the rest of it is a mere spot. A bone broken by mistake meets itself in solid bone over
   its whole width; two bones never do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from osteoprint.ct.volume import Volume

THRESHOLD_HU = 150.0
"""Above muscle (40-80), cartilage and tendon (80-130); the thin cortex of a cancellous end,
blurred over a 1 mm voxel, stays above it."""
MIN_LENGTH_MM = 30.0
"""Shorter pieces are not offered: a human patella (40) stays, phalanges and pebbles go."""

GAP_DEPTH = 0.2
_GAP_FLOOR_HU = 60.0  # two to three times the noise of a clinical scan
_CORTEX_HU = 900.0  # brighter is brighter for no reason that concerns a gap
_MARROW_HU = 600.0  # an inside counts as bone when gaps are sought
_SAME_BONE = 0.45  # below this share of gap in their common face, two pieces are one bone ...
_LEAST_NECK = 0.2  # ... if solid bone joins them over this share of the thinner one's section
_VOTE_VOXELS = 2.0  # radius within which a bone outvotes a spur of another
_EROSIONS = (0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)  # voxels
_COARSE_MM = 0.8  # finer than this shows trabeculae, whose pores look like gaps ...
_COARSE_STEPS = 440  # ... on a bone this many voxels long; small animals stay fine
_MOST_VOXELS = 32e6  # of the working grid: about 2 GB at the peak

_FACES = ndimage.generate_binary_structure(3, 1)
_EDGES = ndimage.generate_binary_structure(3, 2)

Bools = NDArray[np.bool_]
Labels = NDArray[np.int32]
Box = tuple[slice, slice, slice]
Progress = Callable[[str, float], None]


def label_bones(
    volume: Volume,
    *,
    threshold_hu: float = THRESHOLD_HU,
    min_length_mm: float = MIN_LENGTH_MM,
    progress: Progress | None = None,
) -> Iterator[tuple[Labels, Box]]:
    """Give every bone of a scan its number, one cluster of neighbouring bones at a time.

    Parameters
    ----------
    volume : the scan; left unchanged.
    threshold_hu : what counts as bone before insides are filled, in HU.
    min_length_mm : pieces shorter than this (diagonal of the bounding box) are left out.
    progress : called with (what is done, fraction done in 0..1).

    Yields, for each cluster, the box of the scan that holds it and a margin, and in that box
    the labels, (i, j, k) int32 with 0 for everything else. Bones of different clusters are
    at least four voxels apart. Yields nothing where nothing is bright and long enough.
    """
    report = progress or (lambda what, done: None)
    bright = _long_pieces(volume.volume_hu > threshold_hu, volume.spacing_mm, min_length_mm)
    clusters, _ = ndimage.label(ndimage.binary_dilation(bright, iterations=2))
    found: list[Box] = ndimage.find_objects(clusters)
    longest_mm = max((_diagonal_mm(where, volume.spacing_mm) for where in found), default=0.0)
    report("bone found", 0.1)
    for number, where in enumerate(found, 1):
        box = _widened(where, 4)
        own: Bools = (clusters[box] == number) & bright[box]
        factors = _coarsening(volume.spacing_mm, longest_mm, own.size)
        labels = _split(volume.volume_hu[box], own, factors, volume.spacing_mm, min_length_mm)
        report("bones parted", 0.1 + 0.9 * number / len(found))
        yield labels, box


def _split(
    grey: NDArray[np.generic],
    bright: Bools,
    factors: NDArray[np.int64],
    spacing_mm: NDArray[np.float64],
    min_length_mm: float,
) -> Labels:
    """Labels of one cluster of bones."""
    coarse: Bools = _coarsen(bright.astype(np.uint8), factors) >= 0.5
    body, sound = _solid_and_sound(_coarsen(grey, factors), coarse)
    depth = _depth(sound)
    seeds = _cores(depth, spacing_mm * factors, min_length_mm)
    # Fronts of the watershed meet in gaps and at necks.
    pieces: Labels = watershed(-depth, seeds, mask=body).astype(np.int32)
    return _refine(_vote(_join(pieces, sound, depth)), bright, factors)


def _widened(where: Box, margin: int) -> Box:
    """The box with a margin on all sides, but not below index 0."""
    i, j, k = (slice(max(s.start - margin, 0), s.stop + margin) for s in where)
    return i, j, k


def _refine(labels: Labels, bright: Bools, factors: NDArray[np.int64]) -> Labels:
    """Labels of the working grid on the scan's own grid, kept to what is bone there."""
    if np.all(factors == 1):
        return labels
    # One step further out than the coarse body, which may miss the rim of the fine one.
    near = np.where(labels == 0, ndimage.grey_dilation(labels, size=(3, 3, 3)), labels)
    full, inside = near, labels
    for axis, factor in enumerate(factors):
        full = np.repeat(full, factor, axis=axis)
        inside = np.repeat(inside, factor, axis=axis)
    i, j, k = bright.shape
    full, inside = full[:i, :j, :k], inside[:i, :j, :k]
    return np.where(bright, full, inside).astype(np.int32)


def _long_pieces(bright: Bools, spacing_mm: NDArray[np.float64], min_length_mm: float) -> Bools:
    """The pieces that are long enough to be a bone."""
    labels, count = ndimage.label(bright)
    keep = np.zeros(count + 1, dtype=bool)
    for number, where in enumerate(ndimage.find_objects(labels), 1):
        keep[number] = _diagonal_mm(where, spacing_mm) >= min_length_mm
    return np.asarray(keep[labels])


def _diagonal_mm(where: Box, spacing_mm: NDArray[np.float64]) -> float:
    return float(np.linalg.norm([(s.stop - s.start) * d for s, d in zip(where, spacing_mm)]))


def _coarsening(
    spacing_mm: NDArray[np.float64], extent_mm: float, voxels: int
) -> NDArray[np.int64]:
    """(3,) whole factors from the scan's grid to the working grid."""
    target = min(_COARSE_MM, extent_mm / _COARSE_STEPS)
    factors = np.maximum(1, np.floor(target / spacing_mm + 0.25)).astype(np.int64)
    while voxels / factors.prod() > _MOST_VOXELS:
        factors[np.argmin(spacing_mm * factors)] += 1
    return factors


def _coarsen(grid: NDArray[np.generic], factors: NDArray[np.int64]) -> NDArray[np.float32]:
    """Block means, slab by slab so that no full-size copy in float is made."""
    if np.all(factors == 1):
        return grid.astype(np.float32)
    shape = -(-np.array(grid.shape) // factors)
    out = np.empty(shape, dtype=np.float32)
    f, g, h = (int(v) for v in factors)
    for i in range(shape[0]):
        slab = grid[i * f : (i + 1) * f]
        pad = [(0, int(n * k - s)) for n, k, s in zip(shape[1:], (g, h), slab.shape[1:])]
        slab = np.pad(slab.astype(np.float32).mean(axis=0), pad, mode="edge")
        out[i] = slab.reshape(shape[1], g, shape[2], h).mean(axis=(1, 3))
    return out


def _solid_and_sound(grey: NDArray[np.float32], bright: Bools) -> tuple[Bools, Bools]:
    """The bones with their insides, and the part of that which is not a gap."""
    inside = fill_inside(close_gaps(bright, 1)) & ~bright
    inside = _opening(inside)  # what closing put between two bones is thin, marrow is not
    body = ndimage.binary_fill_holes(bright | inside)
    walls = np.minimum(grey, _CORTEX_HU)
    walls[inside] = np.maximum(walls[inside], _MARROW_HU)
    bridged = ndimage.grey_closing(walls, size=(3, 3, 3))
    gap = bridged - walls > np.maximum(_GAP_FLOOR_HU, GAP_DEPTH * bridged)
    sound = fill_inside(body & ~gap) & body
    return body, sound


def close_gaps(mask: Bools, steps: int) -> Bools:
    """Binary closing that neither grows from nor shrinks at the border of the grid."""
    grown = np.pad(mask, steps, mode="edge")
    grown = ndimage.binary_dilation(grown, _EDGES, iterations=steps)
    grown = ndimage.binary_erosion(grown, _EDGES, iterations=steps, border_value=1)
    return grown[steps:-steps, steps:-steps, steps:-steps]


def _opening(mask: Bools) -> Bools:
    return ndimage.binary_opening(np.pad(mask, 2, mode="edge"), _EDGES)[2:-2, 2:-2, 2:-2]


def fill_inside(mask: Bools) -> Bools:
    """Fill what a mask encloses in at least two of the three slice directions.

    More forgiving than filling in 3D, which one pinhole in a cortex defeats, and more
    careful than filling in one direction, which would fill the space between two bones
    that touch at both ends. Where the border of the grid cuts the mask, the cut is capped.

    mask : (I, J, K) bool. Returns (I, J, K) bool, a superset.
    """
    capped = np.pad(mask, 1)
    for axis in range(3):
        for end in (0, -1):
            inner: list[slice | int] = [slice(1, -1)] * 3
            face: list[slice | int] = [slice(None)] * 3
            inner[axis] = face[axis] = end
            capped[tuple(inner)] = ndimage.binary_fill_holes(mask[tuple(face)])
    votes = np.zeros(capped.shape, dtype=np.uint8)
    for axis in range(3):
        layers, counts = np.moveaxis(capped, axis, 0), np.moveaxis(votes, axis, 0)
        for i in np.flatnonzero(layers.any(axis=(1, 2))):
            counts[i] += ndimage.binary_fill_holes(layers[i])
    filled: Bools = ndimage.binary_fill_holes(capped | (votes >= 2))
    return filled[1:-1, 1:-1, 1:-1]


def _depth(mask: Bools) -> NDArray[np.float32]:
    """Distance to the outside in voxels; a cut by the grid's border is not an outside."""
    padded = np.pad(mask, 4, mode="edge")
    return ndimage.distance_transform_edt(padded)[4:-4, 4:-4, 4:-4].astype(np.float32)


def _cores(
    depth: NDArray[np.float32], spacing_mm: NDArray[np.float64], min_length_mm: float
) -> Labels:
    """Seeds for the watershed: pieces that erosion shows to be more than one."""
    children: list[dict[int, list[tuple[int, Box]]]] = []
    before = np.zeros(depth.shape, dtype=np.int32)
    for erosion in _EROSIONS:
        labels, _ = ndimage.label(depth > erosion)
        family: dict[int, list[tuple[int, Box]]] = {}
        counts = np.bincount(labels.ravel())
        for number, where in enumerate(ndimage.find_objects(labels), 1):
            if counts[number] >= 100 and _diagonal_mm(where, spacing_mm) > 0.4 * min_length_mm:
                parent = int(before[where][labels[where] == number][0])
                family.setdefault(parent, []).append((number, where))
        children.append(family)
        before = labels

    def leaves(step: int, number: int, where: Box) -> Iterator[tuple[int, int, Box]]:
        """The deepest split below a piece; the piece itself where nothing splits."""
        below = children[step + 1].get(number, []) if step + 1 < len(children) else []
        ends = [leaf for n, box in below for leaf in leaves(step + 1, n, box)]
        yield from ends if len(ends) > 1 else [(step, number, where)]

    seeds = np.zeros(depth.shape, dtype=np.int32)
    ends = [leaf for n, box in children[0].get(0, []) for leaf in leaves(0, n, box)]
    for step in {step for step, _, _ in ends}:
        labels, _ = ndimage.label(depth > _EROSIONS[step])  # again, rather than kept in memory
        for seed, (level, number, where) in enumerate(ends, 1):
            if level == step:
                seeds[where][labels[where] == number] = seed
    return seeds


def _join(labels: Labels, sound: Bools, depth: NDArray[np.float32]) -> Labels:
    """Make one again what meets in solid bone over a fair width, the surest pairs first."""
    faces = _common_faces(labels, sound)
    count = int(labels.max()) + 1
    # The widest ball in a piece says how wide a joint within one bone would have to be.
    width = np.pi * ndimage.maximum(depth, labels, np.arange(count)) ** 2
    parent = np.arange(count)
    while faces:
        same = {
            pair: gaps / total
            for pair, (total, gaps) in faces.items()
            if gaps < _SAME_BONE * total
            and total - gaps > _LEAST_NECK * min(width[pair[0]], width[pair[1]])
        }
        if not same:
            break
        a, b = min(same, key=lambda pair: same[pair])
        parent[parent == b] = a
        width[a] = max(width[a], width[b])
        merged: dict[tuple[int, int], tuple[int, int]] = {}
        for (c, d), (t, g) in faces.items():
            pair = sorted((a if c == b else c, a if d == b else d))
            if pair[0] != pair[1]:
                had = merged.get((pair[0], pair[1]), (0, 0))
                merged[pair[0], pair[1]] = (had[0] + t, had[1] + g)
        faces = merged
    joined: Labels = parent.astype(np.int32)[labels]
    return joined


def _vote(labels: Labels) -> Labels:
    """Give every voxel to the bone that is most of its surroundings.

    A watershed may run a thin spur of one bone along the cortex of the other; the spur is
    outvoted by what lies behind it.
    """
    best = np.zeros(labels.shape, dtype=np.float32)
    winner = np.zeros_like(labels)
    for number, where in enumerate(ndimage.find_objects(labels), 1):
        if where is None:
            continue
        near = _widened(where, 6)
        own = (labels[near] == number).astype(np.float32)
        votes = ndimage.gaussian_filter(own, _VOTE_VOXELS, mode="nearest", truncate=3.0)
        ahead = (votes > best[near]) & (labels[near] > 0)
        winner[near][ahead] = number
        best[near][ahead] = votes[ahead]
    return winner


def _common_faces(labels: Labels, sound: Bools) -> dict[tuple[int, int], tuple[int, int]]:
    """Pair of labels -> (voxel faces they share, those of them that touch a gap)."""
    size = int(labels.max()) + 1
    total = np.zeros(size * size, dtype=np.int64)
    gaps = np.zeros(size * size, dtype=np.int64)
    for axis in range(3):
        grid, solid = np.moveaxis(labels, axis, 0), np.moveaxis(sound, axis, 0)
        a, b = grid[:-1], grid[1:]
        at = (a != b) & (a > 0) & (b > 0)
        code = np.minimum(a[at], b[at]).astype(np.int64) * size + np.maximum(a[at], b[at])
        gap = ~(solid[:-1][at] & solid[1:][at])
        total += np.bincount(code, minlength=size * size)
        gaps += np.bincount(code[gap], minlength=size * size)
    return {
        (int(c) // size, int(c) % size): (int(total[c]), int(gaps[c]))
        for c in np.flatnonzero(total)
    }
