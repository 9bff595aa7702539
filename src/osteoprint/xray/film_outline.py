"""A bone's outline in soft tissue, closely: by what is left of the film once tissue is taken off.

The network that finds a bone knows where it is, not to the pixel where it ends: its outline lies
2 mm too far out, and at a joint 2 mm more or less. With that outline the tissue beneath the bone
can be told from what is beside it, and what stands out of the tissue tells the outline: on
artificial films of ten real femora its upper end lies 0.1 mm too far in and its lower end 0.5 mm
too far out, 0.2 and 0.3 mm more or less.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import disk

from osteoprint.xray.film_parts import largest_part
from osteoprint.xray.film_tissue import tissue_around

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]
# As the network sees it; to the pixel; and of that only what an edge holds.
Outline = Literal["rough", "close", "held"]

# Bone stands out of tissue by this share of what its brighter tenth does.
_STANDS_OUT, _BRIGHT = 0.12, 90.0
# Looked at twice: what was taken for bone the first time, and was none, is tissue the second.
_ROUNDS = 2
# In shares of the film's longer side: how far beyond the outline bone is looked for, what hangs on
# by less than this is none, and how far within the outline there is bone whatever is seen.
_BEYOND, _SPUR, _CORE = 0.008, 0.004, 0.016
# A pixel as bright as this share of the brightest is burnt out: it tells nothing.
_BURNT = 0.995
# An edge is as steep as this share of what the fainter quarter of a bone's rim is, once the film
# is taken off that is blurred by so much (share of the longer side). At half as much again, gaps
# in the edge of a real condyle let everything out.
_EDGE, _FAINTER, _BLUR = 0.33, 25.0, 0.012
# Gaps narrower than twice this (share of the longer side) hold as an edge does.
_GAP = 0.0055
# More than this share of a bone is no lump on it: its edge is not seen, and all is kept.
_LUMP = 0.08


def outlined(over: Floats, found: Bools, inside: Bools) -> Bools:
    """(rows, columns) bool: the bone, from an outline that lies about right.

    Parameters
    ----------
    over : (rows, columns) grey over air, bone bright.
    found : (rows, columns) bool, the bone as the network sees it.
    inside : (rows, columns) bool, the exposed field.

    Where the film is burnt out, the outline stays as it was found.
    """
    size = max(over.shape)
    core = ndimage.distance_transform_edt(found) > _CORE * size
    top = float(over[inside].max())
    kept = core | (found & ndimage.binary_dilation(over >= _BURNT * top, iterations=2))
    spur, beyond = disk(max(1, round(_SPUR * size))), round(_BEYOND * size)
    bone = found
    for _ in range(_ROUNDS):
        rest = ndimage.gaussian_filter(over - tissue_around(over, bone, inside), 1.0)
        level = _STANDS_OUT * float(np.percentile(rest[bone], _BRIGHT))
        near = ndimage.binary_dilation(bone, iterations=beyond) & inside
        seen = ndimage.binary_opening((rest > level) & near, spur) | kept
        bone = largest_part(ndimage.binary_fill_holes(seen))
        if not bone.any():
            return found
    return bone


def without_lumps(over: Floats, bone: Bools) -> Bools:
    """(rows, columns) bool: an outline less what hangs on beyond the bone's own edge.

    Where tissue swells behind a joint, a lens of it can be taken for bone. Tissue fades out at
    its rim, and where it meets the bone there is an edge: so all that can be reached from
    outside without crossing one is taken away.

    Parameters
    ----------
    over : (rows, columns) grey over air, bone bright.
    bone : (rows, columns) bool.
    """
    size = max(over.shape)
    gap, spur = max(1, round(_GAP * size)), disk(max(1, round(_SPUR * size)))
    fine = over - ndimage.gaussian_filter(over, _BLUR * size)
    steep = ndimage.gaussian_gradient_magnitude(fine, 1.2)
    rim = ndimage.binary_dilation(bone) & ~ndimage.binary_erosion(bone, iterations=2)
    least = _EDGE * np.percentile(ndimage.maximum_filter(steep, 5)[rim], _FAINTER)
    edge = (steep > least) & ndimage.binary_dilation(bone, iterations=2)
    passable = ndimage.distance_transform_edt(~edge) > gap
    outside = ~ndimage.binary_dilation(bone, iterations=gap)
    reached = ndimage.binary_propagation(outside, mask=outside | passable) & passable
    lump = ndimage.distance_transform_edt(~reached) <= gap
    rest = ndimage.binary_opening(bone & ~lump, spur)
    rest = largest_part(ndimage.binary_fill_holes(rest))
    return rest if rest.sum() > (1.0 - _LUMP) * bone.sum() else bone
