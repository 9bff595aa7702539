"""What a training makes small: the loss that its settings name, of a step's embeddings."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from osteoprint.fingerprint.losses import OTHER_LOSSES, other_loss, shape_loss, triplet_loss
from osteoprint.fingerprint.mining import mine
from osteoprint.fingerprint.settings import TrainingSettings


class Criterion:
    """The loss of a step, from its embeddings."""

    def __init__(
        self,
        settings: TrainingSettings,
        rms_mm: NDArray[np.float64] | None,
        device: torch.device,
    ) -> None:
        self._settings, self._device = settings, device
        self._scale = 1.0 if rms_mm is None else typical_rms(rms_mm)
        self._rms = None
        if rms_mm is not None:
            self._rms = torch.tensor(rms_mm, dtype=torch.float32, device=device)
        self._other = other_loss(settings.loss) if settings.loss in OTHER_LOSSES else None

    def __call__(self, embeddings: Tensor, labels: Tensor, step: int) -> Tensor:
        """(B, d) embeddings, (B,) labels -> one number."""
        of = self._settings
        # Whatever the network's precision: distances of neighbours are small differences.
        embeddings = embeddings.float()
        if self._other is not None:
            return self._other(embeddings, labels)
        if of.loss == "shape":
            assert self._rms is not None
            bones, mirrored = labels % len(self._rms), labels >= len(self._rms)
            rms = self._rms[bones][:, bones]
            # How far a mirror image is off nobody has worked out.
            rms = rms.masked_fill(mirrored[:, None] != mirrored[None, :], torch.inf)
            return shape_loss(embeddings, labels, rms, self._scale, of.network.shape_numbers)
        drawn = torch.Generator(self._device).manual_seed(of.seed * 1_000_003 + step)
        triplets = mine(embeddings, labels, of.mining, margin=of.margin, generator=drawn)
        return triplet_loss(
            embeddings, triplets, of.margin, squared=of.squared, tertiary=of.tertiary
        )


def typical_rms(rms_mm: NDArray[np.float64]) -> float:
    """Half the median RMS between different bones: near and far spread over the whole range."""
    off = rms_mm[~np.eye(len(rms_mm), dtype=bool) & np.isfinite(rms_mm)]
    if not len(off):
        return 1.0
    return max(float(np.median(off)) / 2.0, 1e-3)
