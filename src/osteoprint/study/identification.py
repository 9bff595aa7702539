"""Whose bone is it? Rank-1 recognition and pairwise separation, with the angle held out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osteoprint.fingerprint.samples import GALLERY_TURNS_DEG
from osteoprint.study.pairwise import Told


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
    equal_error_rate : where false matches are as frequent as false non-matches.
    threshold : the distance at the equal error rate.
    """

    bones: int
    probes: int
    rank1: float
    rank1_one_view: float
    wrong: list[tuple[str, str]]
    pair_accuracy: float
    equal_error_rate: float
    threshold: float

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
    told = Told.of(nearest[same], nearest[~same])
    rate, threshold = told.equal_error()
    return Recognition(
        bones=len(names),
        probes=answer.size,
        rank1=float((answer == truth).mean()),
        rank1_one_view=float((straight.argmin(axis=2) == truth).mean()),
        wrong=wrong,
        pair_accuracy=float(told.right.max()),
        equal_error_rate=rate,
        threshold=threshold,
    )


def distances(probes: NDArray[np.float32], gallery: NDArray[np.float32]) -> NDArray[np.float64]:
    """(A, P, d) and (B, V, d) unit vectors -> (A, P, B, V) Euclidean distances."""
    cosine = np.einsum("apd,bvd->apbv", probes.astype(np.float64), gallery.astype(np.float64))
    return np.asarray(np.sqrt(np.maximum(2.0 - 2.0 * cosine, 0.0)))
