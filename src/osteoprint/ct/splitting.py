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
_EROSIONS = (0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)  # voxels
_COARSE_MM = 0.8  # finer than this shows trabeculae, whose pores look like gaps ...
_COARSE_STEPS = 440  # ... on a bone this many voxels long; small animals stay fine
_MOST_VOXELS = 48e6  # of the working grid: about 2 GB at the peak

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
) -> tuple[Labels, Box] | None:
    """Give every bone of a scan its number.

    Parameters
    ----------
    volume : the scan; left unchanged.
    threshold_hu : what counts as bone before insides are filled, in HU.
    min_length_mm : pieces shorter than this (diagonal of the bounding box) are left out.
    progress : called with (what is done, fraction done in 0..1).

    Returns the labels, (i, j, k) int32 with 0 for everything else, of the box of the scan
    that holds all bones, and that box; None where nothing is bright and long enough.
    """
    report = progress or (lambda what, done: None)
    bright, box = _bright_box(volume, threshold_hu, min_length_mm)
    if box is None:
        return None
    report("bone found", 0.2)
    bright = np.ascontiguousarray(bright[box])
    factors = _coarsening(volume.spacing_mm, _longest_mm(bright, volume.spacing_mm), bright.size)
    grey = _coarsen(volume.volume_hu[box], factors)
    coarse: Bools = _coarsen(bright.astype(np.uint8), factors) >= 0.5
    body, sound = _solid_and_sound(grey, coarse)
    del grey, coarse
    report("joints found", 0.6)
    seeds = _cores(sound, volume.spacing_mm * factors, min_length_mm)
    report("bones split", 0.8)
    labels = _vote(_join(_grow(seeds, body, sound), sound))
    report("bones joined", 1.0)
    return _refine(labels, bright, factors), box


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


def _bright_box(
    volume: Volume, threshold_hu: float, min_length_mm: float
) -> tuple[Bools, Box | None]:
    """Voxels of bright pieces long enough to be a bone, and the box that holds them."""
    labels, _ = ndimage.label(volume.volume_hu > threshold_hu)
    objects = ndimage.find_objects(labels)
    keep = np.zeros(len(objects) + 1, dtype=bool)
    for number, where in enumerate(objects, 1):
        keep[number] = _diagonal_mm(where, volume.spacing_mm) >= min_length_mm
    bright: Bools = keep[labels]
    if not keep.any():
        return bright, None
    held = [objects[n - 1] for n in np.flatnonzero(keep)]
    box = tuple(
        slice(max(min(h[a].start for h in held) - 4, 0), max(h[a].stop for h in held) + 4)
        for a in range(3)
    )
    return bright, (box[0], box[1], box[2])


def _diagonal_mm(where: Box, spacing_mm: NDArray[np.float64]) -> float:
    return float(np.linalg.norm([(s.stop - s.start) * d for s, d in zip(where, spacing_mm)]))


def _longest_mm(bright: Bools, spacing_mm: NDArray[np.float64]) -> float:
    """Diagonal of the longest connected bright piece."""
    objects = ndimage.find_objects(ndimage.label(bright)[0])
    return max(_diagonal_mm(where, spacing_mm) for where in objects)


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


def _cores(sound: Bools, spacing_mm: NDArray[np.float64], min_length_mm: float) -> Labels:
    """Seeds for the watershed: pieces that erosion shows to be more than one."""
    depth = _depth(sound)
    levels = [ndimage.label(depth > erosion)[0] for erosion in _EROSIONS]
    children: list[dict[int, list[tuple[int, Box]]]] = []
    for step, labels in enumerate(levels):
        family: dict[int, list[tuple[int, Box]]] = {}
        counts = np.bincount(labels.ravel())
        for number, where in enumerate(ndimage.find_objects(labels), 1):
            if counts[number] < 100 or _diagonal_mm(where, spacing_mm) < 0.4 * min_length_mm:
                continue
            inside = labels[where] == number
            parent = int(levels[step - 1][where][inside][0]) if step else 0
            family.setdefault(parent, []).append((number, where))
        children.append(family)

    def leaves(step: int, number: int, where: Box) -> Iterator[tuple[int, int, Box]]:
        """The deepest split below a piece; the piece itself where nothing splits."""
        below = children[step + 1].get(number, []) if step + 1 < len(levels) else []
        ends = [leaf for n, box in below for leaf in leaves(step + 1, n, box)]
        yield from ends if len(ends) > 1 else [(step, number, where)]

    seeds = np.zeros(sound.shape, dtype=np.int32)
    ends = [leaf for n, box in children[0].get(0, []) for leaf in leaves(0, n, box)]
    for seed, (step, number, where) in enumerate(ends, 1):
        seeds[where][levels[step][where] == number] = seed
    return seeds


def _grow(seeds: Labels, body: Bools, sound: Bools) -> Labels:
    """Grow the seeds over the body; fronts meet in gaps and at necks."""
    grown: Labels = watershed(-_depth(sound), seeds, mask=body).astype(np.int32)
    return grown


def _join(labels: Labels, sound: Bools) -> Labels:
    """Make one again what meets in solid bone over a fair width, the surest pairs first."""
    faces = _common_faces(labels, sound)
    count = int(labels.max()) + 1
    # The widest ball in a piece says how wide a joint within one bone would have to be.
    width = np.pi * ndimage.maximum(_depth(sound), labels, np.arange(count)) ** 2
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
        near = tuple(slice(max(s.start - 6, 0), s.stop + 6) for s in where)
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
