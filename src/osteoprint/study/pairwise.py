"""Are two films of one bone? All pairs of many films, in windows of angle and energy.

The paper's question: whether one threshold on the distance between fingerprints tells pairs of
one bone from pairs of two, when the films are close in angle and when they are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osteoprint.bank.error_rates import equal_error
from osteoprint.xray.protocol import PairView

Floats = NDArray[np.float32]
# So many films at a time are compared with all others.
_BLOCK = 512


@dataclass(frozen=True)
class Window:
    """Which films are compared: those that are turned and tipped by no more, at these energies.

    Attributes
    ----------
    name : in words.
    turn_deg, tip_deg : greatest angle about the long axis, and in the image.
    energy_kev : least and greatest.
    paper : the share of pairs that the paper's threshold, the margin, told right, or the least
        and the greatest that it may be; None where it says none.
    """

    name: str
    turn_deg: float
    tip_deg: float
    energy_kev: tuple[float, float] = (0.0, np.inf)
    paper: float | tuple[float, float] | None = None

    def holds(self, view: PairView) -> bool:
        """Does a film pair lie in the window?"""
        low, high = self.energy_kev
        return (
            abs(view.long_deg) <= self.turn_deg
            and abs(view.in_plane_deg) <= self.tip_deg
            and low <= view.energy_kev <= high
        )


# Figure 4, a to e, and the one that the text gives besides. Angles are from the standard view;
# the paper's limits are rounded, its views being 3 degrees apart. Of the two windows that are wide
# one way it gives the range only.
WINDOWS = (
    Window("up to 4°, 146 to 158 keV", 4, 4, (146, 158), 1.0),
    Window("up to 4°", 4, 4, paper=0.9999),
    Window("up to 7°", 7, 7, paper=0.9979),
    Window("turned by up to 22°, tipped by up to 4°", 22, 4, paper=(0.9922, 0.9951)),
    Window("turned by up to 4°, tipped by up to 22°", 4, 22, paper=(0.9922, 0.9951)),
    Window("all", 22, 22, paper=0.9575),
)


@dataclass(frozen=True)
class Separation:
    """How well one threshold tells pairs of one bone from pairs of two.

    Attributes
    ----------
    window : which films.
    films, genuine, impostor : how many films; pairs of one bone; pairs of two.
    accuracy, threshold : the share of all pairs told right at the best threshold, and that.
    balanced : the mean of both kinds' shares, at its own best threshold.
    equal_error_rate : where as many of either kind are told wrong.
    at_margin : the share of all pairs told right at the threshold that training enforced.
    """

    window: Window
    films: int
    genuine: int
    impostor: int
    accuracy: float
    threshold: float
    balanced: float
    equal_error_rate: float
    at_margin: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = asdict(self)
        window = values.pop("window")
        return {"window": window["name"], "paper": window["paper"], **values}


def pair_distances(fingerprints: Floats, bones: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Euclidean distances of all pairs, each once: those of one bone, and those of two.

    (n, d) unit vectors and (n,) whose they are -> two lists, unsorted.
    """
    unit = np.ascontiguousarray(fingerprints, np.float32)
    one, two = [unit[:0, 0]], [unit[:0, 0]]
    for low in range(0, len(unit), _BLOCK):
        high = min(low + _BLOCK, len(unit))
        cosine = unit[low:high] @ unit[low:].T
        distance = np.sqrt(np.maximum(2.0 - 2.0 * cosine, 0.0, dtype=np.float32))
        same = bones[low:high, None] == bones[None, low:]
        later = np.arange(len(unit) - low)[None, :] > np.arange(high - low)[:, None]
        one.append(distance[same & later])
        two.append(distance[~same & later])
    return np.concatenate(one), np.concatenate(two)


def separated(
    window: Window,
    fingerprints: Floats,
    bones: NDArray[np.int64],
    views: Sequence[PairView],
    margin: float,
) -> Separation:
    """One window's answer.

    Parameters
    ----------
    window : which of the films.
    fingerprints, bones, views : (n, d), (n,) and n of all films.
    margin : of the training, in squared distance.

    Raises ValueError where the window holds no pair of one bone, or none of two.
    """
    kept = np.array([window.holds(view) for view in views])
    genuine, impostor = pair_distances(fingerprints[kept], bones[kept])
    if not len(genuine) or not len(impostor):
        raise ValueError(f"{window.name}: no pairs of one bone, or none of two")
    told = Told.of(genuine, impostor)
    limit = float(np.sqrt(margin))
    right = (genuine <= limit).sum() + (impostor > limit).sum()
    plain, balanced = int(np.argmax(told.right)), int(np.argmax(told.balanced))
    return Separation(
        window=window,
        films=int(kept.sum()),
        genuine=len(genuine),
        impostor=len(impostor),
        accuracy=float(told.right[plain]),
        threshold=float(told.levels[plain]),
        balanced=float(told.balanced[balanced]),
        equal_error_rate=equal_error(genuine, impostor)[0],
        at_margin=float(right / (len(genuine) + len(impostor))),
    )


@dataclass(frozen=True, eq=False)
class Told:
    """What each threshold would tell: (k,) thresholds, rising, and shares."""

    levels: Floats
    right: NDArray[np.float64]
    balanced: NDArray[np.float64]

    @classmethod
    def of(cls, genuine: Floats, impostor: Floats) -> Told:
        """Of the distances of both kinds; a threshold takes all pairs at its distance or none."""
        one, two = np.sort(genuine), np.sort(impostor)
        # Only where a distance of one bone's pairs ends can a best threshold lie, or just below
        # a distance of two bones'; the former are fewer, and enough. Or below all of them.
        levels = np.unique(np.append(one, np.float32(0.0)))
        taken = np.searchsorted(one, levels, side="right")
        wrong = np.searchsorted(two, levels, side="right")
        missed, matched = 1.0 - taken / len(one), wrong / len(two)
        right = (taken + len(two) - wrong) / (len(one) + len(two))
        return cls(levels, right, 1.0 - (missed + matched) / 2)
