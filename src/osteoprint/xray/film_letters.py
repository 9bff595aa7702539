"""Letters, side markers and specks burnt into a film: found, and painted over.

Whatever was written on a film is of one grey, the lightest or the darkest there is, and ends
within a pixel or two; bone and tissue, even where a display cuts them off, fade out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]

# Written things are within this of the extreme grey, in shares of the film's range.
_SAME_GREY = 0.04
# Nearly all of what lies two to three pixels away is another grey by at least this.
_STEP, _SHARP_SHARE = 0.2, 0.85
# Sizes: of a speck in pixels; of the largest letter in shares of the film's longer side.
_LEAST_PX, _LARGEST = 4, 0.15
# Where more of the field than this looks written on, it is not writing.
_MOST = 0.05
# Painted over with so wide a margin: the edge of a stroke is half its grey.
_MARGIN_PX = 2


def find_letters(image: Floats, inside: Bools, keep: Bools | None = None) -> Bools:
    """(rows, columns) bool: what was written on a film, its soft edges included.

    Parameters
    ----------
    image : (rows, columns) grey values of full resolution, of either polarity.
    inside : (rows, columns) bool, the exposed field.
    keep : pixels that are known to be none, such as a scale object.
    """
    found = np.zeros(image.shape, bool)
    low, high = float(image[inside].min()), float(image[inside].max())
    if high <= low:
        return found
    level = (image - low) / (high - low)
    for extreme in (0.0, 1.0):
        apart = np.abs(level - extreme)
        near = (apart <= _SAME_GREY) & inside
        if keep is not None:
            near &= ~keep
        found |= _sharp_things(apart, near)
    if found.sum() > _MOST * inside.sum():
        return np.zeros(image.shape, bool)
    return np.asarray(
        ndimage.binary_dilation(found, iterations=_MARGIN_PX) if found.any() else found
    )


def painted_over(image: Floats, letters: Bools, inside: Bools) -> Floats:
    """The film with its letters replaced by what is around them, smoothly."""
    if not letters.any():
        return image
    out = image.copy()
    labels, _ = ndimage.label(letters, np.ones((3, 3), bool))
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        reach = 4 + max(s.stop - s.start for s in box) // 2
        window = tuple(
            slice(max(s.start - reach, 0), min(s.stop + reach, n))
            for s, n in zip(box, image.shape, strict=True)
        )
        good = (~letters[window] & inside[window]).astype(np.float32)
        if not good.any():
            continue
        hole = labels[window] == index
        value = np.full(hole.shape, float(np.median(image[window][good > 0])), np.float32)
        known = np.zeros(hole.shape, bool)
        for width in (1.5, 3.0, 6.0, 12.0):
            weight = ndimage.gaussian_filter(good, width)
            mean = ndimage.gaussian_filter(image[window] * good, width)
            use = (weight > 0.02) & ~known
            value[use] = mean[use] / weight[use]
            known |= use
        out[window][hole] = value[hole]
    return out


def _sharp_things(apart: Floats, near: Bools) -> Bools:
    """Those connected parts of ``near`` that end at once on nearly all sides."""
    out = np.zeros(near.shape, bool)
    longest = max(near.shape)
    labels, _ = ndimage.label(near, np.ones((3, 3), bool))
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        size = max(s.stop - s.start for s in box)
        if size > _LARGEST * longest:
            continue
        window = tuple(
            slice(max(s.start - 4, 0), min(s.stop + 4, n))
            for s, n in zip(box, near.shape, strict=True)
        )
        thing = labels[window] == index
        if thing.sum() < _LEAST_PX:
            continue
        close = ndimage.binary_dilation(thing, iterations=1)
        ring = ndimage.binary_dilation(close, iterations=2) & ~close
        # Strokes of one word lie in each other's ring: they say nothing about its sharpness.
        ring &= ~near[window]
        if ring.any() and (apart[window][ring] > _STEP).mean() >= _SHARP_SHARE:
            out[window] |= thing
    return out
