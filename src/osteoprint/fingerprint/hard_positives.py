"""Which films of a bone are shown together: those that the network still finds least alike.

Most pairs of films of one bone are alike soon, and teach nothing more. What is not found again are
pairs far apart in turn, or one of them taken otherwise. So the fingerprints that films were given
when they were last shown are remembered, and of a few sets that are drawn at random the one is
shown whose fingerprints lay farthest apart (mining of hard positives).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Views = NDArray[np.int64]


class HardPositives:
    """What the films of a training looked like to the network when they were last shown.

    Parameters
    ----------
    bones, films : of how many films there are, so many of each bone.
    dimension : of a fingerprint.
    """

    def __init__(self, bones: int, films: int, dimension: int) -> None:
        self._fingerprints = torch.zeros(bones, films, dimension)
        self._shown = torch.zeros(bones, films, dtype=torch.bool)

    def draw(
        self, bones: NDArray[np.int64], views: int, candidates: int, rng: np.random.Generator
    ) -> Views:
        """(n, views) films of each of (n,) bones, the least alike of so many sets.

        No film is twice in a set, where there are enough of them. A set with one that was never
        shown as it is, but perhaps as its mirror image, goes before all others.
        """
        films = self._shown.shape[1]
        if films < views:
            return rng.integers(0, films, (len(bones), views))
        sets = rng.random((len(bones), candidates, films)).argsort(axis=2)[..., :views]
        at = torch.from_numpy(bones)[:, None, None], torch.from_numpy(sets)
        # Of unit vectors the sum is the shorter, the farther apart they lie.
        alike = self._fingerprints[at].sum(dim=2).square().sum(dim=2)
        alike = alike.masked_fill(~self._shown[at].all(dim=2), -torch.inf)
        chosen: Views = sets[np.arange(len(bones)), alike.argmin(dim=1).numpy()]
        return chosen

    def remember(self, bones: NDArray[np.int64], views: Views, fingerprints: Tensor) -> None:
        """Note the (n × views, d) fingerprints of (n, views) films of (n,) bones."""
        at = torch.from_numpy(np.repeat(bones, views.shape[1])), torch.from_numpy(views.ravel())
        self._fingerprints[at] = fingerprints.detach().float().cpu()
        self._shown[at] = True

    def state(self) -> dict[str, Tensor]:
        """All that is remembered, for a checkpoint."""
        return {"fingerprints": self._fingerprints, "shown": self._shown}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on with what :meth:`state` gave. Raises KeyError and ValueError for anything else."""
        for own, name in ((self._fingerprints, "fingerprints"), (self._shown, "shown")):
            if own.shape != state[name].shape:
                raise ValueError(f"{name} are of other films")
            own.copy_(state[name])
