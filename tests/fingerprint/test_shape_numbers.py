"""The part of a fingerprint that is for shapes is fitted by itself, and the same every time."""

from __future__ import annotations

import numpy as np
import torch

from osteoprint.fingerprint.batches import Stored
from osteoprint.fingerprint.criterion import typical_rms
from osteoprint.fingerprint.encoder import Encoder, Network
from osteoprint.fingerprint.losses import shape_error
from osteoprint.fingerprint.samples import from_bytes
from osteoprint.fingerprint.shape_numbers import fit_shape_numbers

BONES, VIEWS = 10, 3


def bars() -> np.ndarray:
    """(bones, views, 2, 48, 16) uint8: the longer the bar, the larger the bone's number."""
    out = np.zeros((BONES, VIEWS, 2, 48, 16), np.uint8)
    for bone in range(BONES):
        out[bone, :, :, 4 : 14 + 3 * bone, 5:11] = 200
    return out


def as_numbers() -> np.ndarray:
    """(bones, bones) mm: as far apart as the bars are long."""
    at = np.arange(BONES, dtype=float)
    return np.abs(at[:, None] - at)


def encoder(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(Network(dimension=32, reductions=(), shape_share=0.25)).eval()


def error(network: Encoder) -> float:
    shown = torch.from_numpy(from_bytes(bars()[:, 0]))
    with torch.inference_mode():
        shapes = torch.nn.functional.normalize(network(shown)[:, -8:], dim=1)
    rms = as_numbers()
    return float(shape_error(shapes, torch.from_numpy(rms), typical_rms(rms)))


def test_distances_come_to_follow_the_shapes_and_nothing_else_changes():
    network = encoder()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    wrong = error(network)
    fit_shape_numbers(network, Stored(bars()), as_numbers(), steps=150)
    assert error(network) < 0.2 * wrong
    for name, value in network.state_dict().items():
        if name in ("reductions.0.weight", "reductions.0.bias"):
            assert torch.equal(value[:-8], before[name][:-8])
            assert not torch.equal(value[-8:], before[name][-8:])
        else:
            assert torch.equal(value, before[name])


def test_it_is_the_same_whatever_was_there_before():
    one, other = encoder(), encoder()
    with torch.no_grad():
        other.reductions[-1].weight[-8:] += 1.0
    for network in (one, other):
        fit_shape_numbers(network, Stored(bars()), as_numbers(), steps=5)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_where_no_shape_is_known_nothing_is_fitted():
    network = encoder()
    before = network.reductions[-1].weight.clone()
    rms = np.where(np.eye(BONES, dtype=bool), 0.0, np.inf)
    fit_shape_numbers(network, Stored(bars()), rms, steps=5)
    assert torch.equal(network.reductions[-1].weight, before)


def test_of_many_places_the_means_over_those_that_lie_together_tell_shapes():
    torch.manual_seed(0)
    network = Encoder(Network(dimension=32, reductions=(), shape_share=0.25, grid=(12, 4))).eval()
    wrong = error(network)
    fit_shape_numbers(network, Stored(bars()), as_numbers(), steps=150)
    assert error(network) < 0.2 * wrong
    for_shapes = network.reductions[-1].weight[-8:].reshape(8, -1, 6, 2, 2, 2)
    assert torch.equal(for_shapes, for_shapes[:, :, :, :1, :, :1].expand_as(for_shapes))
    for_bones = network.reductions[-1].weight[:-8].reshape(24, -1, 6, 2, 2, 2)
    assert not torch.equal(for_bones, for_bones[:, :, :, :1, :, :1].expand_as(for_bones))
