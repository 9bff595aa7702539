"""Local contrast: what a film and a model of it have in common, whatever the film's curve.

Grey values of a film follow the line integrals by a curve nobody knows, beneath soft tissue
and scatter that vary slowly. Both vanish where the local mean is taken away and the rest is
divided by its local spread. What remains of the curve is a local gain, and of the tissue an
offset.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba as nb
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]

# The spread of the rest, and the film's curve, are taken over so many times the distance of the
# mean; where there is next to no spread, a share of the usual spread keeps noise down.
_SPREAD_REACH, _CURVE_REACH, _FLOOR = 2.0, 2.0, 0.15
_GAIN_LIMITS = (0.2, 1.5)


@dataclass(frozen=True, eq=False)
class Seen:
    """Where a film tells anything, and means over it. Made by :meth:`of`.

    Attributes
    ----------
    mask : (rows, columns) float32, 1 where the film was exposed.
    reach : standard deviation of the local mean, pixels.
    weights : by how many times the reach, the mask's own sums, (rows, columns).
    """

    mask: Image
    reach: float
    weights: dict[float, Image]

    @classmethod
    def of(cls, mask: Image, reach: float) -> Seen:
        """The means over (rows, columns) `mask`, 0 or 1, at a reach in pixels."""
        times = (1.0, _SPREAD_REACH)
        sums = {t: np.maximum(smoothed(mask, t * reach), 1e-3) for t in times}
        return cls(mask, reach, sums)

    def part(self, window: tuple[slice, slice]) -> Seen:
        """The same of a part of the film, for what is 0 beyond it."""
        return Seen(self.mask[window], self.reach, {t: w[window] for t, w in self.weights.items()})

    def mean(self, stack: Image, times: float = 1.0) -> Image:
        """Local means of (rows, columns) or (rows, columns, p), over what was exposed."""
        weight = self.weights[times]
        if stack.ndim == 3:
            kept = stack if self.mask.all() else stack * self.mask[..., None]
            out = smoothed(kept, self.reach * times)
            out /= weight[..., None]
            return out
        return smoothed(stack * self.mask, self.reach * times) / weight

    def normalised(self, image: Image) -> tuple[Image, Image]:
        """(rows, columns) local contrast, and the local spread it was divided by."""
        rest = (image - self.mean(image)) * self.mask
        variance = np.maximum(self.mean(rest * rest, _SPREAD_REACH), 0.0)
        spread = np.sqrt(variance[variance > 1e-12 * variance.max()])
        floor = _FLOOR * float(np.median(spread)) if spread.size else 1.0
        divisor = np.sqrt(variance + np.float32(max(floor, 1e-9)) ** 2)
        return (rest / divisor).astype(np.float32), divisor.astype(np.float32)

    def curve(self, film: Image, model: Image, on: Image) -> tuple[Image, Image]:
        """(rows, columns) gain and offset that bring the model's contrast to the film's, locally.

        By least squares over the pixels where `on` is 1, near ones first.
        """
        sigma = self.reach * _CURVE_REACH
        count = np.maximum(smoothed(on, sigma), 1e-3)
        mf, mm = self.level(film, on), self.level(model, on)
        both = smoothed(film * model * on, sigma) / count - mf * mm
        own = smoothed(model * model * on, sigma) / count - mm * mm
        gain = np.clip(both / (own + np.float32(1e-3)), *_GAIN_LIMITS).astype(np.float32)
        return gain, (mf - gain * mm).astype(np.float32)

    def level(self, image: Image, on: Image) -> Image:
        """(rows, columns) local means as :meth:`curve` takes them, where `on` is 1."""
        sigma = self.reach * _CURVE_REACH
        return np.asarray(smoothed(image * on, sigma) / np.maximum(smoothed(on, sigma), 1e-3))


def smoothed(stack: Image, sigma: float) -> Image:
    """A Gaussian of standard deviation `sigma` pixels, nearly; beyond the edges all is 0.

    Three running means whose widths need not be whole (Gwosdek et al., SSVM 2011).

    Parameters
    ----------
    stack : (rows, columns) or (rows, columns, p) float32.
    """
    flat = np.ascontiguousarray(stack, np.float32)
    # Three boxes of half width `reach`, whose edge pixels count in part.
    wanted = sigma * sigma / 3.0
    reach = int((-1.0 + np.sqrt(1.0 + 12.0 * wanted)) / 2.0)
    inner = 2.0 * sum(k * k for k in range(1, reach + 1))
    # (inner + 2 a (reach + 1)^2) / (2 reach + 1 + 2 a) is the variance wanted.
    part = (wanted * (2 * reach + 1) - inner) / (2.0 * ((reach + 1) ** 2 - wanted))
    weight = 1.0 / (2 * reach + 1 + 2 * part)
    if flat.ndim == 2:
        # Along whatever lies in rows in memory: an image is turned for its second pass.
        lying = _thrice(flat, reach, part, weight)
        return np.ascontiguousarray(_thrice(lying.T.copy(), reach, part, weight).T)
    rows = len(flat)
    there, back = _thrice(flat.reshape(rows, -1), reach, part, weight).reshape(flat.shape), None
    for _ in range(3):
        back = np.empty_like(there) if back is None else back
        _along_columns(there, back, reach, np.float32(part), np.float32(weight))
        there, back = back, there
    return there


def _thrice(image: Image, reach: int, part: float, weight: float) -> Image:
    """Three running means along the first axis of (rows, m)."""
    # Memory that was never touched costs more than the sums: two pieces are used in turn.
    first, second = np.empty_like(image), np.empty_like(image)
    for source, out in ((image, first), (first, second), (second, first)):
        _along_rows(source, out, reach, np.float32(part), np.float32(weight))
    return first


# So many columns are worked on together: their sums stay in the fastest cache.
_RUN = 256


@nb.njit(cache=True, nogil=True, error_model="numpy", fastmath=True)
def _run_of_columns(image, out, low, reach, part, weight):  # type: ignore[no-untyped-def]
    """Running mean along the first axis of (rows, m), for the columns of one run."""
    rows, width = image.shape
    count = min(_RUN, width - low)
    nothing = np.zeros(count, np.float32)
    total = np.zeros(count, np.float32)
    for r in range(min(reach, rows)):
        total += image[r, low : low + count]
    for r in range(rows):
        ahead, behind, further = r + reach, r - reach - 1, r + reach + 1
        enters = image[ahead, low : low + count] if ahead < rows else nothing
        leaves = image[behind, low : low + count] if behind >= 0 else nothing
        next_in = image[further, low : low + count] if further < rows else nothing
        made = out[r, low : low + count]
        for c in range(count):
            total[c] += enters[c] - leaves[c]
            made[c] = weight * (total[c] + part * (next_in[c] + leaves[c]))


@nb.njit(cache=True, nogil=True, error_model="numpy", fastmath=True)
def _along_rows(image, out, reach, part, weight):  # type: ignore[no-untyped-def]
    """All runs, on one core: another has the other film."""
    for low in range(0, image.shape[1], _RUN):
        _run_of_columns(image, out, low, reach, part, weight)


@nb.njit(cache=True, nogil=True, error_model="numpy", fastmath=True)
def _along_columns(stack, out, reach, part, weight):  # type: ignore[no-untyped-def]
    """Running mean along the second axis of (rows, columns, p)."""
    rows, columns, count = stack.shape
    for r in range(rows):
        nothing = np.zeros(count, np.float32)
        total = np.zeros(count, np.float32)
        for c in range(min(reach, columns)):
            total += stack[r, c]
        for c in range(columns):
            ahead, behind, further = c + reach, c - reach - 1, c + reach + 1
            enters = stack[r, ahead] if ahead < columns else nothing
            leaves = stack[r, behind] if behind >= 0 else nothing
            next_in = stack[r, further] if further < columns else nothing
            made = out[r, c]
            for p in range(count):
                total[p] += enters[p] - leaves[p]
                made[p] = weight * (total[p] + part * (next_in[p] + leaves[p]))
