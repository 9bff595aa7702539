"""Path lengths to 8-bit pictures: weighted, blurred and rounded in one go."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from osteoprint.xray.radiograph import weighted_sum


def blur_kernel(sigma_px: float) -> NDArray[np.float32]:
    """(2 n + 1,) a Gaussian out to four standard deviations, of sum one."""
    reach = max(int(4.0 * sigma_px + 0.5), 0)
    at = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * np.square(at / max(sigma_px, 1e-9)))
    return np.asarray(weights / weights.sum(), dtype=np.float32)


def draw_blurred(
    lengths_mm: NDArray[np.float32],
    grey_per_mm: NDArray[np.float32],
    kernel: NDArray[np.float32],
    out: NDArray[np.uint8],
    top: int,
    left: int,
) -> None:
    """Draw path lengths into a black picture, blurred; values beyond 0...255 are cut.

    Parameters
    ----------
    lengths_mm : (M, rows, columns) mm of each material; nothing lies outside of it.
    grey_per_mm : (M,) float32, how much a mm of each material adds to the grey value.
    kernel : from :func:`blur_kernel`.
    out : (picture rows, picture columns) uint8, written where the blur reaches.
    top, left : the pixel of ``out`` that the first pixel of ``lengths_mm`` falls on.
    """
    _blur_into(weighted_sum(lengths_mm, grey_per_mm), kernel, out, top, left)


@nb.njit(fastmath=True, error_model="numpy", cache=True)
def _blur_into(image, kernel, out, top, left):  # type: ignore[no-untyped-def]
    """Columns first, row by row so that memory is read in order; then each row by itself."""
    rows, columns = image.shape
    reach = kernel.size // 2
    line = np.zeros(columns + 4 * reach, np.float32)
    wide = np.zeros(columns + 2 * reach, np.float32)
    for r in range(-reach, rows + reach):
        at = top + r
        if at < 0 or at >= out.shape[0]:
            continue
        line[:] = np.float32(0.0)
        middle = line[2 * reach : 2 * reach + columns]
        for k in range(max(r - reach, 0), min(r + reach + 1, rows)):
            weight = kernel[k - r + reach]
            for c in range(columns):
                middle[c] += weight * image[k, c]
        # One vector of pixels after another for each weight: the compiler can do many at once.
        wide[:] = np.float32(0.5)
        for k in range(kernel.size):
            weight = kernel[k]
            for c in range(columns + 2 * reach):
                wide[c] += weight * line[c + k]
        for c in range(max(0, reach - left), min(columns + 2 * reach, out.shape[1] - left + reach)):
            value = min(max(wide[c], np.float32(0.0)), np.float32(255.0))
            out[at, left - reach + c] = np.uint8(value)
