"""Whether bone is bright or dark on a film, read from the film itself.

Two signs, in this order. Air: where the beam met nothing the film is of one even grey, at one
end of its range and over a large part of the field; bone never is. Bone: where soft tissue
fills the field, bone stands out of it as the sharper and denser structure on one side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Polarity = Literal["bone_bright", "bone_dark"]

# Air fills at least this share of the field, and so many times what the other end has.
_LEAST_AIR = 0.1
_CLEARLY = 2.5
# Grey that counts as the same, in shares of the range. A thigh may be as dark as it may be
# large: then the end that is the more even one is the air.
_SAME = (0.03, 0.006)
# How lopsided the detail of a film must be to be believed where there is no air.
_LEAST_SKEW = 0.25


@dataclass(frozen=True)
class FoundPolarity:
    """What a film says of its polarity.

    Attributes
    ----------
    polarity : None where it cannot be told.
    reason : what it was told by, in words.
    by_air : told by air, the surer sign of the two.
    """

    polarity: Polarity | None
    reason: str
    by_air: bool = False


def find_polarity(image: NDArray[np.float32], inside: NDArray[np.bool_]) -> FoundPolarity:
    """Tell whether bone is bright or dark.

    Parameters
    ----------
    image : (rows, columns) grey values of either polarity, about 300 to 800 pixels long.
    inside : (rows, columns) bool, the exposed field.
    """
    smooth = ndimage.median_filter(image, 5)
    values = smooth[inside]
    if values.size < 100:
        return FoundPolarity(None, "the exposed field is too small")
    low, high = (float(v) for v in np.percentile(values, [0.1, 99.9]))
    if high <= low:
        return FoundPolarity(None, "the exposed field is of one even grey")
    level = (smooth - low) / (high - low)
    for spread in _SAME:
        dark, bright = (_even_share(level, inside, end, spread) for end in (0.0, 1.0))
        if bright >= _LEAST_AIR and bright > _CLEARLY * dark:
            return FoundPolarity("bone_dark", f"air is bright ({bright:.0%} of the field)", True)
        if dark >= _LEAST_AIR and dark > _CLEARLY * bright:
            return FoundPolarity("bone_bright", f"air is dark ({dark:.0%} of the field)", True)
    skew = _detail_skew(level, inside)
    if abs(skew) < _LEAST_SKEW:
        return FoundPolarity(None, "neither air nor bone stands out")
    found: Polarity = "bone_bright" if skew > 0 else "bone_dark"
    return FoundPolarity(
        found, f"{skew:+.2f} the detail is {'brighter' if skew > 0 else 'darker'} than around"
    )


def _even_share(
    level: NDArray[np.float32], inside: NDArray[np.bool_], end: float, spread: float
) -> float:
    """Share of the field that is of an even grey near one end of the range.

    The grey is that of the mode nearest to the end, since a film's air is seldom its very
    extreme: noise, a heel effect or a few saturated pixels lie beyond.
    """
    values = level[inside]
    counts, edges = np.histogram(values, bins=64, range=(-0.02, 1.02))
    third = slice(0, 21) if end == 0.0 else slice(43, 64)
    mode = third.start + int(np.argmax(counts[third]))
    grey = (edges[mode] + edges[mode + 1]) / 2
    if spread < 0.01:
        near = values[np.abs(values - grey) <= 0.02]
        grey = float(np.median(near)) if near.size else grey
    same = inside & (np.abs(level - grey) <= spread)
    # Even means: the neighbourhood is of the same grey too, which a thin bone's is not.
    wide = max(3, round(0.02 * max(level.shape)))
    even = ndimage.uniform_filter(same.astype(np.float32), 2 * wide + 1, mode="nearest") > 0.8
    return float((even & same).sum() / inside.sum())


def _detail_skew(level: NDArray[np.float32], inside: NDArray[np.bool_]) -> float:
    """Skewness of what stands out of its surroundings at the width of a shaft; + is bright."""
    weight = inside.astype(np.float32)
    sigma = 0.04 * max(level.shape)
    fine = 0.006 * max(level.shape)

    def mean(width: float) -> NDArray[np.float32]:
        total = ndimage.gaussian_filter(level * weight, width)
        return np.asarray(total / np.maximum(ndimage.gaussian_filter(weight, width), 1e-3))

    core = ndimage.binary_erosion(inside, iterations=max(1, round(sigma / 2)))
    detail = (mean(fine) - mean(sigma))[core]
    if detail.size < 100:
        return 0.0
    detail = detail - detail.mean()
    spread = float(np.sqrt((detail**2).mean()))
    return float((detail**3).mean() / max(spread, 1e-9) ** 3)


def air_level(image: NDArray[np.float32], inside: NDArray[np.bool_]) -> float:
    """The grey of a bone-bright film where the beam met nothing.

    The most frequent grey of the darker third, or the darkest hundredth where nothing but
    body is exposed.
    """
    values = image[inside]
    low, high = (float(v) for v in np.percentile(values, [0.1, 99.9]))
    if high <= low:
        return low
    counts, edges = np.histogram(values, bins=192, range=(low, high))
    mode = int(np.argmax(counts[:64]))
    near = values[(values >= edges[max(mode - 1, 0)]) & (values <= edges[mode + 2])]
    if near.size < 0.05 * values.size:
        return float(np.percentile(values, 1.0))
    return float(np.median(near))
