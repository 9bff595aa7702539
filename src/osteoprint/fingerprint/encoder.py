"""The network that turns an AP + ML pair into a fingerprint of unit length.

As in the paper: a backbone up to its last features, then three pairs of (fully connected
layer, L2 norm), the last of which gives d numbers on the unit sphere. The two views are
the two channels of one image.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from osteoprint.errors import ModelError
from osteoprint.xray.standard import StandardFrame

COMPACT = "compact"
CARD_FORMAT = 1


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


class Encoder(nn.Module):
    """Backbone and reduction: (B, 2, H, W) float in 0...1 -> (B, d) of unit length.

    Parameters
    ----------
    backbone : ``compact`` or the name of a timm network.
    dimension : d, the length of the fingerprint.
    pretrained : load ImageNet weights (timm networks only).
    """

    # Where along the bone a feature lies matters as much as what it is: the features are
    # pooled to a coarse grid, not to a point.
    grid = (6, 2)

    def __init__(self, backbone: str, dimension: int = 128, *, pretrained: bool = False) -> None:
        super().__init__()
        self.backbone_name = backbone
        self.dimension = dimension
        self.backbone, channels = _build_backbone(backbone, pretrained)
        features = channels * self.grid[0] * self.grid[1]
        self.reductions = nn.ModuleList(
            nn.Linear(a, b) for a, b in ((features, 512), (512, 256), (256, dimension))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2, H, W) -> (B, d), each row of unit length."""
        features = self.backbone(x)
        x = functional.adaptive_avg_pool2d(features, self.grid).flatten(1)
        for reduce in self.reductions:
            x = functional.normalize(reduce(x), dim=1)
        return x


def check_backbone(name: str, *, pretrained: bool = False) -> None:
    """Raises ModelError for a network that cannot be built, before any work is done for it."""
    if name == COMPACT:
        if pretrained:
            raise ModelError(name, "has no ImageNet weights", "train it from scratch")
        return
    import timm  # slow to import, and not needed for the default network

    if not timm.is_model(name):
        raise ModelError(name, "is no network that timm knows", f'use "{COMPACT}" or a timm name')
    try:
        with torch.inference_mode():
            model = timm.create_model(name, in_chans=2, num_classes=0, global_pool="").eval()
            features = model(torch.zeros(1, 2, 192, 64))
    except Exception:  # each network refuses in its own way
        features = torch.zeros(0)
    if features.ndim != 4:
        raise ModelError(
            name,
            "does not turn pictures of 192 × 64 pixels into a map of features",
            f'use "{COMPACT}" or a convolutional network',
        )


def _build_backbone(name: str, pretrained: bool) -> tuple[nn.Module, int]:
    check_backbone(name, pretrained=pretrained)
    if name == COMPACT:
        return CompactBackbone(), CompactBackbone.channels
    import timm

    try:
        model = timm.create_model(
            name, pretrained=pretrained, in_chans=2, num_classes=0, global_pool=""
        )
    except Exception as error:  # the hub client raises its own family of errors
        raise ModelError(
            name,
            f"its ImageNet weights cannot be loaded ({type(error).__name__})",
            "go online once, or train from scratch",
        ) from None
    return model, int(cast(int, model.num_features))


@dataclass
class ModelCard:
    """What a model is, kept as JSON beside its weights.

    Attributes
    ----------
    backbone, dimension : the network.
    frame : the standard pictures it reads.
    loss : what it was trained for.
    trained_on : identifiers of the bones it saw, with a hash over their scans.
    settings : every setting of the training.
    figures : what was measured at the end of the training, in words -> value.
    """

    backbone: str
    dimension: int
    frame: StandardFrame
    loss: str
    trained_on: dict[str, Any]
    settings: dict[str, Any]
    figures: dict[str, float] = field(default_factory=dict)
    format: int = CARD_FORMAT

    def to_json(self) -> dict[str, Any]:
        """The card as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any], source: str) -> ModelCard:
        """Read a card; raises ModelError (naming ``source``) where it does not fit."""
        try:
            if values["format"] != CARD_FORMAT:
                raise ModelError(
                    source,
                    f"is of format {values['format']}, this program reads {CARD_FORMAT}",
                    "train it again with this version",
                )
            return cls(**{**values, "frame": StandardFrame(**values["frame"])})
        except (KeyError, TypeError):
            raise ModelError(source, "is no model card", "train the model again") from None


@dataclass(frozen=True, eq=False)
class Model:
    """An encoder with its card, ready for use."""

    encoder: Encoder
    card: ModelCard

    def embed(self, pictures: NDArray[np.float32], batch: int = 128) -> NDArray[np.float32]:
        """(n, 2, H, W) standard pictures in 0...1 -> (n, d) float32 fingerprints."""
        self.encoder.eval()
        parts = []
        with torch.inference_mode():
            for start in range(0, len(pictures), batch):
                block = np.ascontiguousarray(pictures[start : start + batch])
                parts.append(self.encoder(torch.from_numpy(block)).numpy())
        return np.concatenate(parts) if parts else np.zeros((0, self.card.dimension), np.float32)


def save_model(model: Model, path: Path) -> None:
    """Write weights to ``path`` (.safetensors) and the card to ``<path without ending>.json``.

    Each file appears whole or not at all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file({k: v.contiguous() for k, v in model.encoder.state_dict().items()}, partial)
    card = model.card.to_json() | {
        "weights_sha256": hashlib.sha256(partial.read_bytes()).hexdigest()
    }
    card_path = path.with_suffix(".json")
    card_partial = card_path.with_name(card_path.name + ".partial")
    card_partial.write_text(json.dumps(card, indent=1) + "\n")
    partial.replace(path)
    card_partial.replace(card_path)


def load_model(path: Path) -> Model:
    """Read a model written by :func:`save_model`.

    Raises ModelError: no such file, a pickle, a card that is missing or of other weights,
    weights that do not fit the network.
    """
    if not path.is_file():
        raise ModelError(path, "is not a file", "give a model made by 'osteoprint train'")
    if path.suffix != ".safetensors":
        raise ModelError(path, "is not a .safetensors file", "pickled models are never read")
    card_path = path.with_suffix(".json")
    try:
        values = json.loads(card_path.read_text())
        sha256 = values.pop("weights_sha256")
    except (OSError, ValueError, KeyError, AttributeError):
        raise ModelError(card_path, "is no model card", "keep it beside its weights") from None
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ModelError(path, "does not match its card", "copy both files again")
    card = ModelCard.from_json(values, str(card_path))
    encoder = Encoder(card.backbone, card.dimension)
    try:
        encoder.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError):
        raise ModelError(path, "does not fit its network", "train it again") from None
    encoder.eval()
    return Model(encoder, card)
