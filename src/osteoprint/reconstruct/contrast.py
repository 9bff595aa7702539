"""Local contrast: what a film and a model of it have in common, whatever the film's curve.

Grey values of a film follow the line integrals by a curve nobody knows, beneath soft tissue
and scatter that vary slowly. Both vanish where the local mean is taken away and the rest is
divided by its local spread. What remains of the curve is a local gain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba as nb
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]

# The spread of the rest is taken over so many times the distance of the mean, the gain over
# more; where there is next to no spread, a share of the usual spread keeps noise down.
_SPREAD_REACH, _GAIN_REACH, _FLOOR = 2.0, 3.0, 0.15
_GAIN_LIMITS = (0.2, 1.5)


@dataclass(frozen=True, eq=False)
class Seen:
    """Where a film tells anything, and sums over it.

    Attributes
    ----------
    mask : (rows, columns) float32, 1 where the film was exposed.
    reach : standard deviation of the local mean, pixels.
    """

    mask: Image
    reach: float

    def mean(self, stack: Image, times: float = 1.0) -> Image:
        """Local means of (rows, columns) or (rows, columns, p), over what was exposed."""
        sigma = self.reach * times
        weight = np.maximum(smoothed(self.mask, sigma), 1e-3)
        if stack.ndim == 3:
            return smoothed(stack * self.mask[..., None], sigma) / weight[..., None]
        return smoothed(stack * self.mask, sigma) / weight

    def normalised(self, image: Image) -> tuple[Image, Image]:
        """(rows, columns) local contrast, and the local spread it was divided by."""
        rest = (image - self.mean(image)) * self.mask
        variance = np.maximum(self.mean(rest * rest, _SPREAD_REACH), 0.0)
        spread = np.sqrt(variance[variance > 1e-12 * variance.max()])
        floor = _FLOOR * float(np.median(spread)) if spread.size else 1.0
        divisor = np.sqrt(variance + np.float32(max(floor, 1e-9)) ** 2)
        return rest / divisor, divisor

    def gain(self, film: Image, model: Image) -> Image:
        """(rows, columns) by how much the model's contrast is to be multiplied, locally."""
        both = self.mean(film * model, _GAIN_REACH)
        own = self.mean(model * model, _GAIN_REACH)
        return np.clip(both / (own + np.float32(1e-3)), *_GAIN_LIMITS).astype(np.float32)


def smoothed(stack: Image, sigma: float) -> Image:
    """A Gaussian of standard deviation `sigma` pixels, nearly; beyond the edges all is 0.

    Three running means whose widths need not be whole (Gwosdek et al., SSVM 2011).

    Parameters
    ----------
    stack : (rows, columns) or (rows, columns, p) float32.
    """
    flat = np.ascontiguousarray(stack, np.float32)
    cube = flat if flat.ndim == 3 else flat[..., None]
    # Three boxes of half width `reach`, whose edge pixels count in part.
    wanted = sigma * sigma / 3.0
    reach = int((-1.0 + np.sqrt(1.0 + 12.0 * wanted)) / 2.0)
    inner = 2.0 * sum(k * k for k in range(1, reach + 1))
    # (inner + 2 a (reach + 1)^2) / (2 reach + 1 + 2 a) is the variance wanted.
    part = (wanted * (2 * reach + 1) - inner) / (2.0 * ((reach + 1) ** 2 - wanted))
    weight = 1.0 / (2 * reach + 1 + 2 * part)
    there, back = cube.copy(), np.empty_like(cube)
    for _ in range(3):
        _along_rows(there, back, reach, np.float32(part), np.float32(weight))
        _along_columns(back, there, reach, np.float32(part), np.float32(weight))
    return there if flat.ndim == 3 else there[..., 0]


@nb.njit(cache=True, nogil=True, parallel=True, error_model="numpy", fastmath=True)
def _along_columns(stack, out, reach, part, weight):  # type: ignore[no-untyped-def]
    """Running mean along the second axis."""
    rows, columns, count = stack.shape
    for r in nb.prange(rows):
        total = np.zeros(count, np.float32)
        for c in range(min(reach, columns)):
            for p in range(count):
                total[p] += stack[r, c, p]
        for c in range(columns):
            # `total` holds c - reach ... c + reach after this.
            if c + reach < columns:
                for p in range(count):
                    total[p] += stack[r, c + reach, p]
            if c - reach - 1 >= 0:
                for p in range(count):
                    total[p] -= stack[r, c - reach - 1, p]
            for p in range(count):
                out[r, c, p] = total[p]
            if c + reach + 1 < columns:
                for p in range(count):
                    out[r, c, p] += part * stack[r, c + reach + 1, p]
            if c - reach - 1 >= 0:
                for p in range(count):
                    out[r, c, p] += part * stack[r, c - reach - 1, p]
            for p in range(count):
                out[r, c, p] *= weight


@nb.njit(cache=True, nogil=True, parallel=True, error_model="numpy", fastmath=True)
def _along_rows(stack, out, reach, part, weight):  # type: ignore[no-untyped-def]
    """Running mean along the first axis."""
    rows, columns, count = stack.shape
    for c in nb.prange(columns):
        total = np.zeros(count, np.float32)
        for r in range(min(reach, rows)):
            for p in range(count):
                total[p] += stack[r, c, p]
        for r in range(rows):
            if r + reach < rows:
                for p in range(count):
                    total[p] += stack[r + reach, c, p]
            if r - reach - 1 >= 0:
                for p in range(count):
                    total[p] -= stack[r - reach - 1, c, p]
            for p in range(count):
                out[r, c, p] = total[p]
            if r + reach + 1 < rows:
                for p in range(count):
                    out[r, c, p] += part * stack[r + reach + 1, c, p]
            if r - reach - 1 >= 0:
                for p in range(count):
                    out[r, c, p] += part * stack[r - reach - 1, c, p]
            for p in range(count):
                out[r, c, p] *= weight
