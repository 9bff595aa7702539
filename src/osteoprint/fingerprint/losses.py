"""What training minimises, and how well it did: triplets, and distances that follow shape."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_distances(embeddings: Tensor) -> Tensor:
    """(B, d) unit vectors -> (B, B) squared Euclidean distances, 0...4."""
    return (2.0 - 2.0 * embeddings @ embeddings.T).clamp_min(0.0)


def triplet_loss(embeddings: Tensor, labels: Tensor, margin: float = 0.1) -> Tensor:
    """Equation (1) of the paper on the hardest triplet of each anchor.

    For every anchor: its farthest positive and nearest negative in the batch ("batch
    hard", Hermans et al. 2017). Squared Euclidean distances.

    Parameters
    ----------
    embeddings : (B, d), unit length.
    labels : (B,) integer, which bone. Each bone at least twice, at least two bones.
    margin : the distance that must lie between.
    """
    d2 = squared_distances(embeddings)
    same = labels[:, None] == labels[None, :]
    positive = d2.masked_fill(~same, -1.0).amax(dim=1)
    negative = d2.masked_fill(same, 5.0).amin(dim=1)
    return (positive - negative + margin).clamp_min(0.0).mean()


def triplet_accuracy(embeddings: Tensor, labels: Tensor, margin: float = 0.1) -> float:
    """Equation (2): the share of all triplets with ap² + margin < an².

    Parameters as in :func:`triplet_loss`; every (anchor, positive, negative) counts once.
    """
    d2 = squared_distances(embeddings)
    same = labels[:, None] == labels[None, :]
    good = total = 0
    for i in range(len(labels)):
        positives = same[i].clone()
        positives[i] = False
        hit = d2[i, positives][:, None] + margin < d2[i, ~same[i]][None, :]
        good += int(hit.sum())
        total += hit.numel()
    return good / total if total else float("nan")


def shape_target(rms_mm: Tensor, scale_mm: float) -> Tensor:
    """The distance two fingerprints should have, from the surface RMS between the bones.

    Rises steeply where bones are alike, so that the order of the near neighbours, which
    decides the nearest match, weighs most; reaches 1.4 (a right angle) for bones that
    have nothing in common.
    """
    return 1.4 * (1.0 - torch.exp(-rms_mm / scale_mm))


def shape_loss(
    embeddings: Tensor, labels: Tensor, rms_mm: Tensor, scale_mm: float, margin: float = 0.1
) -> Tensor:
    """Distances between fingerprints that follow the surface RMS between the bones.

    The squared error of every pair's distance against :func:`shape_target`, relative to
    it, plus the triplet loss, which keeps each bone apart from its nearest neighbour.

    Parameters
    ----------
    embeddings, labels, margin : as in :func:`triplet_loss`.
    rms_mm : (n, n), surface RMS between the bones that labels count, zero on the diagonal.
    scale_mm : the RMS at which the target has risen to 63 %.
    """
    distance = (squared_distances(embeddings) + 1e-8).sqrt()
    target = shape_target(rms_mm[labels][:, labels], scale_mm)
    pair = ((distance - target) ** 2) / (target + 0.15)
    off = ~torch.eye(len(labels), dtype=torch.bool)
    return pair[off].mean() + triplet_loss(embeddings, labels, margin)
