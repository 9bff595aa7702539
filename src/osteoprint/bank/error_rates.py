"""How often distances decide wrongly, and the thresholds that follow from it.

A false match calls two bones one, a false non-match calls one bone two; distances up to the
threshold count as the same bone.
"""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np
from numpy.typing import ArrayLike, NDArray


def equal_error(genuine: ArrayLike, impostor: ArrayLike) -> tuple[float, float]:
    """(equal error rate, its threshold) of (g,) genuine and (i,) impostor distances.

    The threshold lies in the middle between two distances, where the larger of the false
    match and the false non-match rate is smallest; the rate is the mean of the two there.
    Raises ValueError for empty or not finite samples.
    """
    same, other = (
        np.sort(checked(sample, what))
        for sample, what in ((genuine, "genuine"), (impostor, "impostor"))
    )

    def rates(at: float) -> tuple[float, float]:
        misses = 1.0 - np.searchsorted(same, at, side="right") / len(same)
        return float(misses), float(np.searchsorted(other, at, side="right") / len(other))

    def crossed(at: float) -> bool:
        misses, matches = rates(at)
        return misses <= matches

    # Of all distances only the first where misses are no longer more, and the last before it,
    # can be best; of millions of pairs these are found without looking at every one.
    firsts = [
        values[place] for values in (same, other)
        if (place := bisect_left(values, True, key=crossed)) < len(values)
    ]  # fmt: skip
    at = min(firsts)
    before = _neighbours(same, other, at)[0]
    candidates = [at] if before is None else [before, at]

    def badness(at: float) -> tuple[float, float]:
        misses, matches = rates(at)
        return round(max(misses, matches), 12), round(abs(misses - matches), 12)

    best = min(candidates, key=badness)
    after = _neighbours(same, other, best)[1]
    return sum(rates(best)) / 2, float(best if after is None else (best + after) / 2)


def _neighbours(
    one: NDArray[np.float64], other: NDArray[np.float64], at: float
) -> tuple[float | None, float | None]:
    """Of two sorted samples, the greatest below ``at`` and the smallest above it."""
    below, above = [], []
    for values in (one, other):
        left, right = (int(np.searchsorted(values, at, side=s)) for s in ("left", "right"))
        below += list(values[left - 1 : left]) if left else []
        above += list(values[right : right + 1])
    return max(below, default=None), min(above, default=None)


def threshold_at_fmr(impostor: ArrayLike, target_fmr: float) -> float | None:
    """The largest threshold whose false match rate is at most ``target_fmr``, or None.

    With k of n impostors at or below it the rate is taken to be ``(k + 1) / (n + 1)``, so
    that a sample too small to show the rate gives None instead of a promise. Raises
    ValueError for a rate outside (0, 1) and empty or not finite samples.
    """
    if not 0 < target_fmr < 1:
        raise ValueError(f"a false match rate lies between 0 and 1, not {target_fmr}")
    other = np.sort(checked(impostor, "impostor"))
    allowed = min(math.floor(target_fmr * (len(other) + 1) + 1e-9), len(other)) - 1
    if allowed < 0:
        return None
    # Just below the first impostor that must not match.
    return float(np.nextafter(other[allowed], -np.inf))


def threshold_at_fnmr(genuine: ArrayLike, target_fnmr: float) -> float | None:
    """The smallest threshold whose false non-match rate is at most ``target_fnmr``, or None.

    With k of n genuine distances beyond it the rate is taken to be ``(k + 1) / (n + 1)``, as
    in :func:`threshold_at_fmr`. Raises ValueError for a rate outside (0, 1) and empty or not
    finite samples.
    """
    if not 0 < target_fnmr < 1:
        raise ValueError(f"a false non-match rate lies between 0 and 1, not {target_fnmr}")
    same = np.sort(checked(genuine, "genuine"))
    beyond = min(math.floor(target_fnmr * (len(same) + 1) + 1e-9), len(same)) - 1
    return None if beyond < 0 else float(same[len(same) - 1 - beyond])


def checked(distances: ArrayLike, what: str) -> NDArray[np.float64]:
    """Distances as (n,) float64; ValueError, naming what, for an empty or not finite sample."""
    values = np.asarray(distances, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"{what} distances must be a filled list of finite numbers")
    return values
