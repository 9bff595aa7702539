"""The network that turns an AP + ML pair into a fingerprint of unit length.

As in the paper: a backbone up to its last features, then pairs of (fully connected layer, L2
norm), three in the paper, the last of which gives d numbers on the unit sphere. The two views are
the two channels of one image.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from osteoprint.errors import ModelError

COMPACT = "compact"


class CompactBackbone(nn.Module):
    """A small residual network for two CPU cores: (B, 2, H, W) -> (B, 160, H/16, W/16).

    The first convolution steps by four pixels: on a CPU the large early maps cost most of
    the time, and a bone's outline survives it.
    """

    channels = 160

    def __init__(self, in_channels: int = 2) -> None:
        super().__init__()
        widths = (48, 96, self.channels)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], 7, stride=4, padding=3, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        )
        self.first = _Residual(widths[0])
        self.stages = nn.ModuleList(_Stage(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Features of the deepest stage."""
        x = cast(Tensor, self.first(self.stem(x)))
        for stage in self.stages:
            x = stage(x)
        return x


class _Residual(nn.Module):
    """Two convolutions around which the signal also passes unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels)
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.second(self.first(x)))


class _Stage(nn.Module):
    """Halve the size, then a residual pair of convolutions."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.down = _conv(inside, outside, stride=2)
        self.residual = _Residual(outside)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.residual(self.down(x)))


def _conv(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(inplace=True),
    )


@dataclass(frozen=True)
class Network:
    """What a fingerprint network is made of.

    Attributes
    ----------
    backbone : ``compact`` or the name of a timm network.
    dimension : d, the length of the fingerprint.
    reductions : widths of the fully connected layers before the last; each of them, and the
        last, is followed by an L2 norm.
    pooling : "grid": features on a coarse grid, so that where along the bone one lies is kept;
        "whole": the backbone up to its last fully connected layer, as in the paper.
    grid : rows and columns of that grid.
    looks : a fingerprint is the mean of those of so many copies of the pictures, each film moved by
        a few pixels of its own; 1: that of the pictures as they are. In training there is one.
    views : AP and ML as two "channels" of one picture, or "side by side" in one.
    contrast : bring every picture to local contrast first, so that the film's curve, its
        exposure and soft tissue matter less.
    shape_share : this share of the fingerprint's numbers, its last, are for comparing shapes, and
        have this share of its squared length; see ``losses.shape_loss``.
    shape_weight : the share of the squared length that they have when the network is used, where it
        is another than in training. Of None a training that fitted them to shapes makes
        ``shape_numbers.SHAPE_WEIGHT``; any other training makes None of all.
    """

    backbone: str = COMPACT
    dimension: int = 128
    reductions: tuple[int, ...] = (512, 256)
    pooling: Literal["grid", "whole"] = "grid"
    views: Literal["channels", "side by side"] = "channels"
    contrast: bool = False
    shape_share: float = 0.0
    grid: tuple[int, int] = (6, 2)
    looks: int = 1
    shape_weight: float | None = None

    def __post_init__(self) -> None:
        # As JSON has no tuples.
        object.__setattr__(self, "reductions", tuple(self.reductions))
        object.__setattr__(self, "grid", tuple(self.grid))

    @property
    def shape_numbers(self) -> int:
        """How many of the fingerprint's numbers are for shapes."""
        return round(self.shape_share * self.dimension)

    @property
    def in_training(self) -> Network:
        """The network as training sees it: what acts only in use left out."""
        return replace(self, looks=1, shape_weight=None)

    @property
    def channels(self) -> int:
        """Channels of the picture that the backbone is given."""
        return 2 if self.views == "channels" else 1

    def example(self) -> Tensor:
        """What the backbone is given, of a pair of pictures of the usual size; black."""
        return torch.zeros(1, self.channels, 192, 64 if self.views == "channels" else 128)


class Encoder(nn.Module):
    """Backbone and reduction: (B, 2, H, W) float in 0...1 -> (B, d) of unit length.

    Parameters
    ----------
    network : what it is made of.
    pretrained : load ImageNet weights (timm networks only).

    Raises ModelError for a network that cannot be built.
    """

    def __init__(self, network: Network, *, pretrained: bool = False) -> None:
        super().__init__()
        self.network = network
        self.contrast = LocalContrast() if network.contrast else nn.Identity()
        self.backbone, features = backbone_of(network, pretrained=pretrained)
        if network.pooling == "grid":
            features *= network.grid[0] * network.grid[1]
        widths = (features, *network.reductions, network.dimension)
        self.reductions = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2, H, W) -> (B, d), each row of unit length."""
        if self.training or self.network.looks == 1:
            return self.once(x)
        looks = [self.once(moved(x, by)) for by in _MOVES[: self.network.looks]]
        return self._unit(torch.stack(looks).mean(dim=0))

    def once(self, x: Tensor) -> Tensor:
        """The same of one look, at the pictures as they are."""
        return self._unit(self.reductions[-1](self.described(x)))

    def _unit(self, x: Tensor) -> Tensor:
        """(B, d) -> the same of unit length, both parts where some numbers are for shapes."""
        count, share = self.network.shape_numbers, self.network.shape_weight
        if not count:
            return functional.normalize(x, dim=1)
        if self.training or share is None:
            share = count / self.network.dimension
        parts = x[:, :-count], x[:, -count:]
        apart, shape = (functional.normalize(part, dim=1) for part in parts)
        return torch.cat([(1.0 - share) ** 0.5 * apart, share**0.5 * shape], dim=1)

    def described(self, x: Tensor) -> Tensor:
        """(B, 2, H, W) -> (B, f): what the last layer is given."""
        x = self.contrast(x)
        if self.network.views == "side by side":
            x = side_by_side(x)
        x = self.backbone(x)
        if self.network.pooling == "grid":
            x = functional.adaptive_avg_pool2d(x, self.network.grid)
        x = x.flatten(1)
        *reduce, _ = self.reductions
        for layer in reduce:
            x = functional.normalize(layer(x), dim=1)
        return x


# Pixels (down, right) by which each look moves AP and ML: a fingerprint hangs a little on where the
# network's steps of four pixels fall, and on how exactly the bone was found.
_MOVES = (
    ((0, 0), (0, 0)),
    ((1, 1), (-1, -1)),
    ((-1, -1), (1, 1)),
    ((1, -1), (-1, 1)),
    ((-1, 1), (1, -1)),
)
MOST_LOOKS = len(_MOVES)


def moved(x: Tensor, by: tuple[tuple[int, int], tuple[int, int]]) -> Tensor:
    """(B, 2, H, W) -> the same, each view moved by (down, right) pixels; what comes in is 0."""
    views = []
    for view, (down, right) in enumerate(by):
        own = functional.pad(x[:, view], (right, -right, down, -down))
        views.append(own)
    return torch.stack(views, dim=1)


def side_by_side(x: Tensor) -> Tensor:
    """(B, 2, H, W) -> (B, 1, H, 2W): AP and ML in one picture, as in the paper."""
    return torch.cat([x[:, :1], x[:, 1:]], dim=3)


# Standard deviations of a Gaussian beyond which nothing is counted.
_FARTHEST = 6.0


class LocalContrast(nn.Module):
    """(B, C, H, W) -> the same, less its local mean, over its local spread; nothing is learnt.

    The mean is a Gaussian over a fiftieth of the height; the spread, over twice as much.
    """

    reach = 1 / 50
    # Of the picture's own mean spread: below it there is nothing but noise. The greatest would let
    # one end that is burnt out hide all the rest.
    floor = 0.4

    def forward(self, x: Tensor) -> Tensor:
        """Local contrast of each channel by itself."""
        sigma = self.reach * x.shape[2]
        rest = x - blurred(x, sigma)
        spread = blurred(rest * rest, 2 * sigma).clamp_min(0.0).sqrt()
        least = self.floor * spread.mean(dim=(2, 3), keepdim=True)
        return rest / (spread + least + 1e-6)


def blurred(x: Tensor, sigma: float) -> Tensor:
    """(B, C, H, W) blurred; beyond the edges all is 0.

    As products with a matrix for each axis: on one channel, ten times as fast as convolutions.
    """
    along, across = (_blur(n, sigma, x) for n in x.shape[2:])
    return along @ x @ across


def _blur(count: int, sigma: float, like: Tensor) -> Tensor:
    """(count, count) matrix that blurs; symmetric."""
    at = torch.arange(count, dtype=like.dtype, device=like.device)
    off = (at[:, None] - at).abs() / sigma
    bell = torch.exp(-0.5 * off**2) / (sigma * math.sqrt(2 * math.pi))
    # Farther out it is less than rounding, and soon numbers so small that a CPU takes five times
    # as long over them.
    return torch.where(off < _FARTHEST, bell, 0.0)


def check_network(network: Network, *, pretrained: bool = False) -> None:
    """Raises ModelError for a network that cannot be built, before any work is done for it."""
    name = network.backbone
    if name == COMPACT:
        if pretrained:
            raise ModelError(name, "has no ImageNet weights", "train it from scratch")
        if network.pooling != "grid":
            raise ModelError(name, "has no fully connected layer", "pool its features on a grid")
        return
    import timm  # slow to import, and not needed for the default network

    if not timm.is_model(name):
        raise ModelError(name, "is no network that timm knows", f'use "{COMPACT}" or a timm name')
    try:
        with torch.inference_mode():
            model = _timm(network, pretrained=False).eval()
            features = model(network.example())
    except Exception:  # each network refuses in its own way
        features = torch.zeros(0)
    if features.ndim != (4 if network.pooling == "grid" else 2):
        raise ModelError(
            name,
            f"does not turn pictures of {' × '.join(map(str, network.example().shape[2:]))} "
            "pixels into features",
            f'use "{COMPACT}" or a convolutional network',
        )


def _timm(network: Network, *, pretrained: bool) -> nn.Module:
    """A timm network as far as its features: a map of them, or up to its last connected layer."""
    import timm

    whole: dict[str, Any] = {} if network.pooling == "whole" else {"global_pool": ""}
    return timm.create_model(
        network.backbone,
        pretrained=pretrained,
        in_chans=network.channels,
        num_classes=0,
        **whole,
    )


def backbone_of(network: Network, *, pretrained: bool = False) -> tuple[nn.Module, int]:
    """The backbone, and how many features it gives. Raises ModelError as :class:`Encoder`."""
    check_network(network, pretrained=pretrained)
    if network.backbone == COMPACT:
        return CompactBackbone(network.channels), CompactBackbone.channels
    try:
        model = _timm(network, pretrained=pretrained)
    except Exception as error:  # the hub client raises its own family of errors
        raise ModelError(
            network.backbone,
            f"its ImageNet weights cannot be loaded ({type(error).__name__})",
            "go online once, or train from scratch",
        ) from None
    with torch.inference_mode():
        given = model.eval()(network.example())
    return model.train(), int(given.shape[1])
