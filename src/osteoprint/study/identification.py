"""Whose bone is it? Rank-1 recognition and pairwise separation, with the angle held out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osteoprint.bank.evidence import Calibration
from osteoprint.fingerprint.samples import GALLERY_TURNS_DEG
from osteoprint.study.pairwise import Told

# So many of the nearest bones are looked at for a bone's own.
RANKS = 10
# Points of a curve.
_POINTS = 60


@dataclass(frozen=True)
class Recognition:
    """How well views of enrolled bones were recognised at turns that were not enrolled.

    Attributes
    ----------
    bones, probes : how many bones stood in the gallery, how many pairs were asked for.
    rank1 : share of probes whose nearest fingerprint is of the right bone.
    rank1_one_view : the same when only the straight view of each bone is enrolled.
    wrong : (asked, answered) names of the probes that went wrong.
    pair_accuracy : share of all (probe, bone) pairs on the right side of the best
        threshold on the distance to the bone's nearest enrolled view.
    equal_error_rate : where false matches are as frequent as false non-matches, and
        ``eer_ci95`` its 95 % interval, bones drawn anew.
    threshold : the distance at the equal error rate.
    cllr, cllr_min : what the likelihood ratios cost, in bits, see ``bank.evidence``; on the
        distances that they are learnt from.
    cmc : share of probes whose own bone is among the k nearest, for k = 1 to ``RANKS``.
    roc : (false match rate, true match rate), both rising.
    """

    bones: int
    probes: int
    rank1: float
    rank1_one_view: float
    wrong: list[tuple[str, str]]
    pair_accuracy: float
    equal_error_rate: float
    eer_ci95: tuple[float, float]
    threshold: float
    cllr: float
    cllr_min: float
    cmc: list[float]
    roc: list[tuple[float, float]]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Views:
    """Fingerprints of gallery and probe views of the same bones.

    Attributes
    ----------
    gallery : (bones, views, d); probes : (bones, pairs, d), unit length.
    """

    gallery: NDArray[np.float32]
    probes: NDArray[np.float32]


def recognise(views: Views, names: list[str]) -> Recognition:
    """Ask every probe of every bone of the gallery whose it is."""
    per_view = distances(views.probes, views.gallery)
    nearest = per_view.min(axis=3)
    straight = per_view[..., GALLERY_TURNS_DEG.index(0.0)]
    truth = np.arange(len(names))[:, None]
    answer = nearest.argmin(axis=2)
    wrong = [
        (names[b], names[answer[b, p]]) for b, p in zip(*np.nonzero(answer != truth), strict=True)
    ]
    same = np.broadcast_to(np.eye(len(names), dtype=bool)[:, None, :], nearest.shape)
    genuine, impostor = nearest[same], nearest[~same]
    # Distances of one bone's films are not independent.
    asked = np.broadcast_to(np.arange(len(names))[:, None, None], nearest.shape)
    evidence = Calibration.fit(
        genuine, impostor, genuine_groups=asked[same], impostor_groups=asked[~same]
    )
    own = np.take_along_axis(nearest, truth[..., None], axis=2)
    rank = (nearest < own).sum(axis=2)
    return Recognition(
        bones=len(names),
        probes=answer.size,
        rank1=float((answer == truth).mean()),
        rank1_one_view=float((straight.argmin(axis=2) == truth).mean()),
        wrong=wrong,
        pair_accuracy=float(Told.of(genuine, impostor).right.max()),
        equal_error_rate=evidence.eer,
        eer_ci95=evidence.eer_ci95,
        threshold=evidence.eer_threshold,
        cllr=evidence.cllr,
        cllr_min=evidence.cllr_min,
        cmc=[float((rank < k).mean()) for k in range(1, min(RANKS, len(names)) + 1)],
        roc=roc(genuine, impostor),
    )


def roc(genuine: NDArray[np.float64], impostor: NDArray[np.float64]) -> list[tuple[float, float]]:
    """What each threshold gives: (false match rate, true match rate), both rising to 1.

    Some of the thresholds are left out where there are many, evenly in the logarithm of the rate.
    """
    one, two = np.sort(genuine), np.sort(impostor)
    wrong = np.unique(np.geomspace(1, len(two), _POINTS).astype(int))
    # Just below the k-th impostor lie k - 1 of them.
    matched = np.searchsorted(one, two[wrong - 1], side="left") / len(one)
    points = zip(((wrong - 1) / len(two)).tolist(), matched.tolist(), strict=True)
    return [*points, (1.0, 1.0)]


def distances(probes: NDArray[np.float32], gallery: NDArray[np.float32]) -> NDArray[np.float64]:
    """(A, P, d) and (B, V, d) unit vectors -> (A, P, B, V) Euclidean distances."""
    cosine = np.einsum("apd,bvd->apbv", probes.astype(np.float64), gallery.astype(np.float64))
    return np.asarray(np.sqrt(np.maximum(2.0 - 2.0 * cosine, 0.0)))
