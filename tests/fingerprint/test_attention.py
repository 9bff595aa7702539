"""Attention: a network that can only have looked in one place is seen to have looked there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from osteoprint.fingerprint.attention import attention_maps, bone_of, last_map, share_on_bone
from osteoprint.fingerprint.encoder import Encoder, Network


class Corner(nn.Module):
    """A backbone whose only feature is how bright a place is, coarsely."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x.mean(dim=1, keepdim=True), 8)


def test_attention_lies_where_the_feature_is() -> None:
    encoder = Encoder(Network(dimension=2, reductions=(), grid=(12, 4)))
    encoder.backbone = Corner()
    encoder.reductions = nn.ModuleList([nn.Linear(48, 2)])
    with torch.no_grad():
        encoder.reductions[0].weight.zero_()
        encoder.reductions[0].weight[0, 5] = 1.0  # second row, second column of the coarse map
        encoder.reductions[0].bias.copy_(torch.tensor([0.0, 0.5]))
    pictures = np.full((2, 2, 96, 32), 0.5, np.float32)
    maps = attention_maps(encoder, pictures, np.array([[1.0, 0.0], [1.0, 0.0]], np.float32))
    assert maps.shape == (2, 96, 32)
    assert maps.max() == pytest.approx(1.0)
    # Grad-CAM weighs channels, not places: one channel, so it is as bright as the feature is.
    assert last_map(encoder, torch.zeros(1, 2, 96, 32)) is encoder.backbone


@pytest.mark.parametrize(
    "network",
    [
        Network(),
        Network("resnet10t", 16),
        Network("vgg11", 16, (32,), "whole", "side by side"),
        Network("inception_v3", 16, views="side by side"),
    ],
)
def test_every_backbone_has_a_map(network: Network) -> None:
    torch.manual_seed(1)
    encoder = Encoder(network)
    rng = np.random.default_rng(0)
    pictures = rng.random((3, 2, 192, 64), np.float32)
    encoder.eval()
    with torch.inference_mode():
        towards = encoder(torch.from_numpy(pictures)).numpy()
    maps = attention_maps(encoder, pictures, towards)
    assert maps.shape == (3, 192, 64 if network.views == "channels" else 128)
    assert np.isfinite(maps).all()
    assert maps.min() >= 0


def test_the_share_on_bone_by_hand() -> None:
    pictures = np.zeros((2, 2, 20, 10), np.float32)
    pictures[0, 0, 8:12, 4:6] = 1.0
    bone = bone_of(pictures, side_by_side=False)
    assert bone[0].sum() == 8 * 6
    assert not bone[1].any()
    maps = np.zeros((2, 20, 10), np.float32)
    maps[0, 10, 5], maps[0, 0, 0] = 0.75, 0.25
    share = share_on_bone(maps, bone)
    assert share[0] == pytest.approx(0.75)
    assert np.isnan(share[1])
    assert bone_of(pictures, side_by_side=True).shape == (2, 20, 20)
