"""Which triplets of a batch are learnt from: indices, which a loss consumes."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor

Mining = Literal["hard", "semihard", "random", "all"]
# (t,) indices each of anchors, positives and negatives.
Triplets = tuple[Tensor, Tensor, Tensor]


def mine(
    embeddings: Tensor,
    labels: Tensor,
    how: Mining = "hard",
    *,
    margin: float = 0.1,
    generator: torch.Generator | None = None,
) -> Triplets:
    """Triplets of a batch: anchor and positive of one bone, the negative of another.

    Parameters
    ----------
    embeddings : (B, d), unit length.
    labels : (B,) integer, which bone. Each bone at least twice, at least two bones.
    how : "hard": for every anchor its farthest positive and its nearest negative (Hermans et al.
        2017); "semihard": all whose negative is farther than the positive, by less than `margin`
        in squared distance (Schroff et al. 2015); "random": one of each for every anchor, as in
        the paper; "all".
    generator : for "random"; it has to be on the embeddings' device.
    """
    if how == "hard":
        return _hard(embeddings, labels)
    if how == "random":
        return _random(labels, generator)
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.miners import TripletMarginMiner
    from pytorch_metric_learning.utils.loss_and_miner_utils import get_all_triplets_indices

    if how == "all":
        return cast(Triplets, get_all_triplets_indices(labels))
    squared = LpDistance(normalize_embeddings=False, p=2, power=2)
    miner = TripletMarginMiner(margin=margin, type_of_triplets="semihard", distance=squared)
    return cast(Triplets, miner(embeddings.detach(), labels))


def _same(labels: Tensor) -> Tensor:
    return labels[:, None] == labels[None, :]


def _hard(embeddings: Tensor, labels: Tensor) -> Triplets:
    cosine, same = embeddings.detach() @ embeddings.detach().T, _same(labels)
    positive = cosine.masked_fill(~same, 5.0).argmin(dim=1)
    negative = cosine.masked_fill(same, -5.0).argmax(dim=1)
    return torch.arange(len(labels), device=labels.device), positive, negative


def _random(labels: Tensor, generator: torch.Generator | None) -> Triplets:
    same = _same(labels)
    others = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive, negative = (
        torch.multinomial(mask.float(), 1, generator=generator)[:, 0] for mask in (others, ~same)
    )
    return torch.arange(len(labels), device=labels.device), positive, negative
