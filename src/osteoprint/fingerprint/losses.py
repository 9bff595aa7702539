"""What training minimises, and how well it did: triplets, and distances that follow shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from osteoprint.fingerprint.mining import Triplets


def squared_distances(embeddings: Tensor) -> Tensor:
    """(B, d) unit vectors -> (B, B) squared Euclidean distances, 0...4."""
    return (2.0 - 2.0 * embeddings @ embeddings.T).clamp_min(0.0)


def triplet_loss(
    embeddings: Tensor,
    triplets: Triplets,
    margin: float = 0.1,
    *,
    squared: bool = True,
    tertiary: bool = False,
) -> Tensor:
    """Equation (1) of the paper: the mean of ``max(0, ap - an + margin)``.

    Parameters
    ----------
    embeddings : (B, d), unit length.
    triplets : from :func:`osteoprint.fingerprint.mining.mine`.
    margin : the distance that must lie between.
    squared : squared Euclidean distances, or plain ones.
    tertiary : the negative's distance to the positive counts as much as that to the anchor.
    """
    anchor, positive, negative = (embeddings[index] for index in triplets)
    if not len(anchor):
        return embeddings.sum() * 0.0  # no triplet worth learning from, yet a gradient
    near, far = (_between(anchor, other, squared) for other in (positive, negative))
    if tertiary:
        far = (far + _between(positive, negative, squared)) / 2
    return (near - far + margin).clamp_min(0.0).mean()


def _between(one: Tensor, other: Tensor, squared: bool) -> Tensor:
    """(t,) distances of (t, d) points."""
    d2 = (one - other).square().sum(dim=1)
    # The root has no slope at 0.
    return d2 if squared else (d2 + 1e-12).sqrt()


# Losses of the literature, by the name they have for ``train --loss``.
OTHER_LOSSES = {
    "contrastive": "ContrastiveLoss",
    "multi-similarity": "MultiSimilarityLoss",
    "ntxent": "NTXentLoss",
    "circle": "CircleLoss",
}


def other_loss(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss of the literature, of embeddings and labels, from pytorch-metric-learning.

    ``name`` is one of ``OTHER_LOSSES``; raises KeyError for any other.
    """
    from pytorch_metric_learning import losses

    return cast(Callable[[Tensor, Tensor], Tensor], getattr(losses, OTHER_LOSSES[name])())


def triplet_accuracy(embeddings: Tensor, labels: Tensor, margin: float = 0.1) -> float:
    """Equation (2): the share of all triplets with ap² + margin < an².

    (B, d) embeddings of unit length, (B,) labels; every (anchor, positive, negative) counts once.
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


def contrastive_loss(embeddings: Tensor, labels: Tensor, temperature: float = 0.02) -> Tensor:
    """How improbable it is to draw a film of the same bone by likeness (Khosla et al. 2020).

    Parameters
    ----------
    embeddings : (B, d), unit length.
    labels : (B,) integer, which bone. Each bone at least twice.
    temperature : cosines are divided by it: the smaller, the more the nearest others count.
    """
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    likeness = (embeddings @ embeddings.T / temperature).masked_fill(itself, -torch.inf)
    improbable = likeness.logsumexp(dim=1, keepdim=True) - likeness
    same = (labels[:, None] == labels[None, :]) & ~itself
    return (improbable.masked_fill(~same, 0.0).sum(dim=1) / same.sum(dim=1)).mean()


# What telling bones apart weighs beside following their shapes. With the hardest triplets in its
# place, 22 % of unseen bones were not found in a gallery of 1,000, for 7 % (450 steps).
_APART = 0.1


def shape_loss(
    embeddings: Tensor, labels: Tensor, rms_mm: Tensor, scale_mm: float, shape_numbers: int = 0
) -> Tensor:
    """Distances between fingerprints that follow the surface RMS between the bones.

    :func:`shape_error` plus a part of :func:`contrastive_loss`, which keeps each bone apart from
    its nearest neighbours: between these the wanted distances are small, and errors of them count
    little.

    The two want different things of near neighbours. Where the last ``shape_numbers`` of a
    fingerprint are for shapes, the first part concerns them alone, and the second, which takes
    them as they are, the others.

    Parameters
    ----------
    embeddings : (B, d), unit length.
    labels : (B,) integer, which bone. Each bone at least twice.
    rms_mm : (B, B), surface RMS between the embeddings' bones, zero for the same; infinity where
        it is not known: such bones are only kept apart.
    scale_mm : the RMS at which the target has risen to 63 %.
    shape_numbers : how many of the d are for shapes; 0: all are for both.
    """
    shapes = embeddings
    if shape_numbers:
        own, shapes = embeddings[:, :-shape_numbers], embeddings[:, -shape_numbers:]
        embeddings = torch.cat([own, shapes.detach()], dim=1)
        shapes = functional.normalize(shapes, dim=1)
    return shape_error(shapes, rms_mm, scale_mm) + _APART * contrastive_loss(embeddings, labels)


def shape_error(embeddings: Tensor, rms_mm: Tensor, scale_mm: float) -> Tensor:
    """The mean squared error of all distances against :func:`shape_target`, relative to it.

    (B, d) embeddings, and the rest as in :func:`shape_loss`.
    """
    distance = (squared_distances(embeddings) + 1e-8).sqrt()
    target = shape_target(rms_mm, scale_mm)
    pair = ((distance - target) ** 2) / (target + 0.15)
    itself = torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    return pair[~itself & rms_mm.isfinite()].mean()
