"""The largest connected part of a mask on a film."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

Bools = NDArray[np.bool_]


def largest_part(mask: Bools) -> Bools:
    """(rows, columns) bool -> its largest part, of pixels that share an edge; none of none."""
    labels, count = label(mask)
    if count == 0:
        return np.zeros_like(mask)
    return np.asarray(labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:])))
