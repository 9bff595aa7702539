"""Whose bone, among those learnt: classifiers on fingerprints, and networks that name bones.

Fingerprints are classified by k nearest neighbours or a support vector machine. Transfer learning
puts a new last layer onto a network of the literature and trains that alone, or all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from osteoprint.errors import ModelError
from osteoprint.fingerprint.encoder import Network, backbone_of
from osteoprint.fingerprint.samples import from_bytes, vary

Kind = Literal["k-NN", "SVM"]


def classified(
    kind: Kind,
    known: NDArray[np.float32],
    labels: NDArray[np.int64],
    asked: NDArray[np.float32],
    *,
    neighbours: int = 5,
) -> NDArray[np.int64]:
    """(m,) whose the (m, d) fingerprints asked about are.

    Parameters
    ----------
    kind : k nearest neighbours, by Euclidean distance; or a linear support vector machine.
    known, labels : (n, d) fingerprints and (n,) whose they are.
    neighbours : k, or as many as there are.
    """
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    if kind == "k-NN":
        model = KNeighborsClassifier(min(neighbours, len(known)))
    else:
        model = SVC(kernel="linear", C=10.0)
    return np.asarray(model.fit(known, labels).predict(asked), np.int64)


@dataclass(frozen=True)
class TransferSettings:
    """How a network of the literature learns to name bones.

    Attributes
    ----------
    backbone : a timm network.
    trained : its new last layer ("head"), or every layer ("all").
    optimiser, learning_rate : SGD has a momentum of 0.9.
    steps, batch : so many steps of so many pairs of films.
    pretrained : start from ImageNet weights; without them a head alone learns on noise.
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
    """A backbone and one new layer: (B, 2, H, W) -> (B, bones) logits.

    AP and ML lie side by side in one picture, as in the paper. Raises ModelError for a network
    that cannot be built, or whose weights cannot be had.
    """

    def __init__(self, backbone: str, bones: int, *, pretrained: bool) -> None:
        super().__init__()
        network = Network(backbone, pooling="whole", views="side by side")
        self.backbone, features = backbone_of(network, pretrained=pretrained)
        self.head = nn.Linear(features, bones)

    def forward(self, x: Tensor) -> Tensor:
        """Logits; the greatest is the name."""
        return cast(Tensor, self.head(self.backbone(torch.cat([x[:, :1], x[:, 1:]], dim=3))))


def train_namer(
    pictures: NDArray[np.uint8],
    settings: TransferSettings,
    progress: Callable[[float, float], None] | None = None,
) -> BoneNamer:
    """Teach a network the names of bones.

    Parameters
    ----------
    pictures : (bones, poses, 2, rows, columns) uint8, from ``samples.render_set``.
    settings : see :class:`TransferSettings`.
    progress : called with (share done, current loss).

    Raises ModelError as :class:`BoneNamer`, and for fewer than two bones.
    """
    if len(pictures) < 2:
        raise ModelError("training", "needs at least two bones", "ingest more bones")
    fabric = Fabric(devices=1)
    torch.manual_seed(settings.seed)
    namer = BoneNamer(settings.backbone, len(pictures), pretrained=settings.pretrained)
    if settings.trained == "head":
        namer.backbone.requires_grad_(False)
    learnt = [p for p in namer.parameters() if p.requires_grad]
    optimiser: torch.optim.Optimizer
    if settings.optimiser == "sgd":
        optimiser = torch.optim.SGD(learnt, settings.learning_rate, momentum=0.9)
    else:
        optimiser = torch.optim.Adam(learnt, settings.learning_rate)
    shared, optimising = fabric.setup(namer, optimiser)
    for step in range(settings.steps):
        # A backbone that is not trained keeps its statistics, too.
        shared.train()
        if settings.trained == "head":
            namer.backbone.eval()
        rng = np.random.default_rng([settings.seed, step])
        bones = rng.integers(0, len(pictures), settings.batch)
        views = rng.integers(0, pictures.shape[1], settings.batch)
        drawn = torch.Generator().manual_seed(int(rng.integers(2**62)))
        images = vary(torch.from_numpy(from_bytes(pictures[bones, views])), drawn)
        logits = shared(images.to(fabric.device))
        loss = functional.cross_entropy(logits, torch.from_numpy(bones).to(fabric.device))
        optimising.zero_grad(set_to_none=True)
        fabric.backward(loss)
        optimising.step()
        if progress:
            progress((step + 1) / settings.steps, float(loss.detach()))
    return namer.to("cpu").eval()


def named(namer: BoneNamer, pictures: NDArray[np.float32], batch: int = 32) -> NDArray[np.int64]:
    """(n, 2, H, W) standard pictures -> (n,) which of the bones it was taught."""
    namer.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(pictures), batch):
            block = torch.from_numpy(np.ascontiguousarray(pictures[start : start + batch]))
            parts.append(namer(block).argmax(dim=1).numpy())
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
