"""Transfer learning: a network of the literature with a new last layer learns to name bones.

The new layer alone is trained, or all of the network.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from osteoprint.errors import ModelError
from osteoprint.fingerprint.encoder import Network, backbone_of, side_by_side
from osteoprint.fingerprint.samples import from_bytes, vary

# Batches from which a network's statistics are taken anew.
_SETTLED_ON = 12
Progress = Callable[[float, float], None]


@dataclass(frozen=True)
class TransferSettings:
    """How a network of the literature learns to name bones.

    Attributes
    ----------
    backbone : a timm network.
    trained : its new last layer ("head"), or every layer ("all").
    optimiser, learning_rate : SGD has a momentum of 0.9.
    steps, batch : so many steps of so many pairs of films.
    pretrained : start from ImageNet weights; without them a head alone learns on what random layers
        happen to see.
    seed : of everything drawn.
    """

    backbone: str
    trained: Literal["head", "all"] = "head"
    optimiser: Literal["sgd", "adam"] = "adam"
    learning_rate: float = 1e-4
    steps: int = 200
    batch: int = 16
    pretrained: bool = True
    seed: int = 0


class BoneNamer(nn.Module):
    """A backbone and one new layer, the head, which names bones."""

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    @staticmethod
    def of(backbone: str, bones: int, *, pretrained: bool) -> BoneNamer:
        """A timm network with a head for so many bones.

        Raises ModelError for a network that cannot be built, or whose weights cannot be had.
        """
        network = Network(backbone, pooling="whole", views="side by side")
        built, features = backbone_of(network, pretrained=pretrained)
        return BoneNamer(built, nn.Linear(features, bones))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, 2W), AP and ML side by side -> (B, bones) logits; the greatest is the name."""
        return cast(Tensor, self.head(self.backbone(x)))


def train_namers(
    pictures: NDArray[np.uint8],
    ways: Sequence[TransferSettings],
    progress: Progress | None = None,
) -> Iterator[tuple[TransferSettings, BoneNamer]]:
    """Teach networks the names of bones, each in a way of its own.

    New last layers for one network that is itself not trained learn beside each other, from the
    same films: what takes long is to see these. What each learns is what it would learn alone.

    Parameters
    ----------
    pictures : (bones, poses, 2, rows, columns) uint8, from ``samples.render_set``.
    ways : see :class:`TransferSettings`.
    progress : called with (share of one network's steps done, current loss, the mean of those
        that learn beside each other).

    Yields each way, in their order, and what was trained by it, on the CPU. Namers of which the
    last layer alone was trained, one after the other on one backbone, share that backbone's
    weights. Raises ModelError, when the first is asked for, as :meth:`BoneNamer.of`, and for fewer
    than two bones.
    """
    if len(pictures) < 2:
        raise ModelError("training", "needs at least two bones", "ingest more bones")
    for _, several in itertools.groupby(enumerate(ways), _seen_alike):
        group = [way for _, way in several]
        yield from zip(group, _train(pictures, group, progress), strict=True)


def train_namer(
    pictures: NDArray[np.uint8], settings: TransferSettings, progress: Progress | None = None
) -> BoneNamer:
    """Teach one network the names of bones, see :func:`train_namers`."""
    return next(train_namers(pictures, [settings], progress))[1]


def _seen_alike(numbered: tuple[int, TransferSettings]) -> tuple[int, TransferSettings]:
    """The same for all ways whose last layers are given the same numbers.

    Two ways that train the whole network, be they equal, never share one.
    """
    number, way = numbered
    if way.trained == "all":
        return number, way
    return -1, replace(way, optimiser="sgd", learning_rate=0.0)


def _train(
    pictures: NDArray[np.uint8], ways: list[TransferSettings], progress: Progress | None
) -> list[BoneNamer]:
    """Networks that share a backbone which is not trained; or one, of which all is."""
    from lightning_fabric import Fabric  # slow to import

    of, fabric = ways[0], Fabric(devices=1)
    head_only = of.trained == "head"
    torch.manual_seed(of.seed)
    namer = BoneNamer.of(of.backbone, len(pictures), pretrained=of.pretrained)
    backbone = fabric.to_device(namer.backbone)
    namers = [namer, *(BoneNamer(backbone, deepcopy(namer.head)) for _ in ways[1:])]
    if head_only and not of.pretrained:
        # Its statistics are those of no picture at all, and all pictures would look alike to it.
        update_bn(_some(pictures, of, fabric.device), backbone)
    learners = [
        fabric.setup(part, _optimiser(part, way))
        for part, way in zip([n.head if head_only else n for n in namers], ways, strict=True)
    ]
    # A backbone that is not trained keeps its statistics, too.
    backbone.train(not head_only)
    for step in range(of.steps):
        given, bones = _batch(pictures, of, (step,), fabric.device)
        if head_only:
            with torch.no_grad():
                given = backbone(given)
        losses = []
        for part, optimiser in learners:
            loss = functional.cross_entropy(part(given), bones)
            optimiser.zero_grad(set_to_none=True)
            fabric.backward(loss)
            optimiser.step()
            losses.append(float(loss.detach()))
        if progress:
            progress((step + 1) / of.steps, float(np.mean(losses)))
    if not head_only and of.steps:
        # Running means lag behind weights that have just moved.
        update_bn(_some(pictures, of, fabric.device), backbone)
    return [each.to("cpu").eval() for each in namers]


def _optimiser(part: nn.Module, way: TransferSettings) -> torch.optim.Optimizer:
    if way.optimiser == "sgd":
        return torch.optim.SGD(part.parameters(), way.learning_rate, momentum=0.9)
    return torch.optim.Adam(part.parameters(), way.learning_rate)


def _batch(
    pictures: NDArray[np.uint8], of: TransferSettings, which: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """(batch, 1, H, 2W) pictures and (batch,) whose they are; `which` batch is any numbers."""
    rng = np.random.default_rng([of.seed, *which])
    bones = rng.integers(0, len(pictures), of.batch)
    views = rng.integers(0, pictures.shape[1], of.batch)
    drawn = torch.Generator().manual_seed(int(rng.integers(2**62)))
    images = vary(torch.from_numpy(from_bytes(pictures[bones, views])), drawn)
    return side_by_side(images).to(device), torch.from_numpy(bones).to(device)


def _some(
    pictures: NDArray[np.uint8], of: TransferSettings, device: torch.device
) -> Iterator[Tensor]:
    """Pictures as a training shows them, but others."""
    for step in range(_SETTLED_ON):
        yield _batch(pictures, of, (step, 1), device)[0]


def named(namer: BoneNamer, pictures: NDArray[np.float32], batch: int = 32) -> NDArray[np.int64]:
    """(n, 2, H, W) standard pictures -> (n,) which of the bones it was taught.

    AP and ML are laid side by side for it.
    """
    namer.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(pictures), batch):
            block = torch.from_numpy(np.ascontiguousarray(pictures[start : start + batch]))
            parts.append(namer(side_by_side(block)).argmax(dim=1).numpy())
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
