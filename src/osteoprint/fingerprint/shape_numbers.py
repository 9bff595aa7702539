"""The numbers of a fingerprint that are for shapes, fitted once more when all else is learnt.

Beside the rest of a network they learn the training's bones by heart. Of a network that stands
still they are one linear layer; fitted anew, its near neighbours are those of bones that it has not
seen, too.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from osteoprint.fingerprint.batches import PictureSource
from osteoprint.fingerprint.criterion import typical_rms
from osteoprint.fingerprint.encoder import Encoder
from osteoprint.fingerprint.losses import shape_error
from osteoprint.fingerprint.samples import from_bytes, vary

# Bones that are looked at, at most, evenly drawn; pairs of each, every one changed in so many ways.
_BONES, _VIEWS, _WAYS = 1200, 12, 2
# Bones of a step, each by one pair of films.
_AT_ONCE = 128
_RATE, _DECAY = 1e-3, 1.0
# Of a fingerprint's squared length in use. In training they have less, a quarter: until they are
# fitted anew they tell bones apart that are learnt by heart, and no others.
SHAPE_WEIGHT = 0.4
# Rows and columns of places over which features are averaged: for these the fit was settled.
_PLACES = (6, 2)


def fit_shape_numbers(
    encoder: Encoder,
    source: PictureSource,
    rms_mm: NDArray[np.float64],
    *,
    steps: int,
    seed: int = 0,
) -> bool:
    """Fit the last rows of the encoder's last layer, which are for shapes, and nothing else.

    The same again for the same encoder, whatever these rows were before.

    Parameters
    ----------
    encoder : of a network that has such numbers; changed.
    source : pictures of bones.
    rms_mm : (bones, bones) surface RMS; infinity where it is not known.
    steps : of the fit.
    seed : of everything drawn.

    Returns whether it was done: nothing is fitted where no bone's shape is compared with another's.
    """
    count = encoder.network.shape_numbers
    bones = np.arange(len(source))[:: math.ceil(len(source) / _BONES)]
    means = _means_over_places(encoder).to(next(encoder.parameters()).device)
    told = _described(encoder, source.some(bones, _VIEWS), means, seed)
    middle, spread = told.mean(dim=(0, 1)), told.std(dim=(0, 1)) + 1e-4
    told = (told - middle) / spread
    among = rms_mm[np.ix_(bones, bones)]
    # Bones whose shape is compared with no other's teach nothing.
    compared = np.flatnonzero(np.isfinite(among).sum(axis=1) > 1)
    if not len(compared):
        return False
    layer = _fitted(told, among, compared, typical_rms(rms_mm), count, steps, seed)
    last = encoder.reductions[-1]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        weights = layer.weight / spread
        last.bias[-count:] = layer.bias - weights @ middle
        # A weight of a mean is one of all that it is a mean of.
        spread_out = weights.reshape(-1, means.shape[1]) @ means.T
        last.weight[-count:] = spread_out.reshape(count, -1)
    return True


def _fitted(
    told: Tensor,
    rms_mm: NDArray[np.float64],
    compared: NDArray[np.int64],
    scale_mm: float,
    count: int,
    steps: int,
    seed: int,
) -> torch.nn.Linear:
    """A layer that turns (bones, views, f) features into ``count`` numbers that follow shapes.

    Drawn are the bones ``compared``, of (bones, bones) surface RMS; ``scale_mm`` as in
    ``losses.shape_target``.
    """
    rms = torch.tensor(rms_mm, dtype=torch.float32, device=told.device)
    rng = np.random.default_rng([seed, 10])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = torch.nn.Linear(told.shape[2], count).to(told.device)
    optimiser = torch.optim.AdamW(layer.parameters(), lr=_RATE, weight_decay=_DECAY)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = _RATE * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * step / steps)))
        drawn = rng.choice(compared, min(_AT_ONCE, len(compared)), replace=False)
        views = rng.integers(0, told.shape[1], len(drawn))
        chosen, shown = (torch.from_numpy(k).to(told.device) for k in (drawn, views))
        shapes = functional.normalize(layer(told[chosen, shown]), dim=1)
        known = rms[chosen][:, chosen]
        if known.isfinite().sum() == len(known):
            continue
        loss = shape_error(shapes, known, scale_mm)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return layer


def _means_over_places(encoder: Encoder) -> Tensor:
    """(p, q) what turns p numbers of a feature into q means of places that lie together.

    Where the last layer is given features at no places, or something made of them, each number is
    by itself.
    """
    network = encoder.network
    if network.pooling != "grid" or network.reductions:
        return torch.eye(1)
    count = network.grid[0] * network.grid[1]
    each = torch.eye(count).reshape(count, 1, *network.grid)
    wanted = (min(_PLACES[0], network.grid[0]), min(_PLACES[1], network.grid[1]))
    return functional.adaptive_avg_pool2d(each, wanted).reshape(count, -1)


def _described(encoder: Encoder, shown: NDArray[np.uint8], means: Tensor, seed: int) -> Tensor:
    """(bones, ways × views, f): of what the last layer is given, of pictures changed in some ways.

    ``means`` as of :func:`_means_over_places`.
    """
    device = next(encoder.parameters()).device
    encoder.eval()
    out = []
    with torch.inference_mode():
        for number, pictures in enumerate(shown):
            for way in range(_WAYS):
                draws = torch.Generator().manual_seed((seed * 1_000_003 + number) * _WAYS + way)
                changed = vary(torch.from_numpy(from_bytes(pictures)).to(device), draws)
                given = encoder.described(changed.to(memory_format=torch.channels_last))
                given = given.reshape(len(given), -1, len(means)) @ means
                out.append(given.flatten(1))
        told = torch.stack(out)
    # Outside of inference mode: the layer that is fitted keeps it for its gradient.
    return told.reshape(len(shown), -1, told.shape[-1]).clone()
