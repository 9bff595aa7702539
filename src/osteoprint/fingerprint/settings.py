"""Everything a training depends on besides its bones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from osteoprint.fingerprint.encoder import COMPACT, Network
from osteoprint.fingerprint.mining import Mining

# Layers that are reduced one after the other, with no other step between, came to span five
# dimensions of 128; one layer tells far more bones apart.
# All places of the last features, not means of four: with them a fifth fewer of the known bones and
# of another source's are mistaken (decision 8).
# What follows the shapes does so less and less the longer the same numbers have to tell bones
# apart: it has some of its own.
# Looked at three times, films of one bone lie a seventh nearer together, those of two hardly.
DEFAULT_NETWORK = Network(contrast=True, reductions=(), shape_share=0.25, grid=(12, 4), looks=3)

# A timm network's last features lie on half as many places each way.
_TIMM_GRID = (6, 2)


def with_backbone(network: Network, backbone: str) -> Network:
    """The same network on another backbone, on a grid as fine as what that sees."""
    if backbone == network.backbone:
        return network
    grid = DEFAULT_NETWORK.grid if backbone == COMPACT else _TIMM_GRID
    return replace(network, backbone=backbone, grid=grid)


@dataclass(frozen=True)
class TrainingSettings:
    """Everything a training depends on besides its bones.

    Attributes
    ----------
    network : what is trained.
    loss : "shape" (ours), "triplet" (the paper's), or one of ``OTHER_LOSSES``.
    margin, squared, tertiary, mining : of the triplets, see ``triplet_loss`` and ``mine``.
    bones_per_batch, views_per_bone : P bones × K views a step.
    positive_candidates : the views of a bone are, of so many sets of stored films, the one whose
        fingerprints lay farthest apart when they were last shown; 1: they are drawn at random, as
        they are where no film is shown twice.
    neighbours : half of the bones of a step are drawn from so many nearest in shape of the other
        half, where shapes are known; 0: all are drawn at random.
    mirror : bones are shown as those of the other side, too, which are bones of their own; a
        quarter of a step's bones stand beside their own mirror image.
    variants_per_bone : the bone itself and changed ones that stand beside it as individuals of
        their own: two dozen bones alone do not show a network what "a little longer" looks like.
        None: as many as make 720 of all bones, and at least two.
    drawn : share of the changed ones that are drawn as the bones of their kind and side differ,
        where there are enough of these; the others are changed smoothly, in any way.
    poses_per_variant : how many pairs of films there are of each.
    presets : how films are taken (see :mod:`osteoprint.xray.presets`), one after the other.
    fresh : no film is shown twice: every view is taken when it is asked for, instead of
        `poses_per_variant` before the training. For machines of many cores.
    steps, minutes : `minutes`, of films and training together, stops earlier than `steps` would;
        only a run that is not stopped by it can be repeated exactly.
    optimiser, learning_rate, weight_decay : "adamw", "adam" or "sgd" (momentum 0.9).
    backbone_rate : the backbone's learning rate, as a part of the other layers'.
    pretrained : start from ImageNet weights.
    precision : of the arithmetic, as Lightning Fabric names it: "32-true", "16-mixed",
        "bf16-mixed".
    accelerator, devices : where: "cpu", "cuda" or "auto", and on how many. Each device has its
        own P × K; the loss sees all of them. More than one has not been tried on real devices.
    seed : of everything drawn.
    """

    network: Network = DEFAULT_NETWORK
    loss: str = "shape"
    margin: float = 0.1
    squared: bool = True
    tertiary: bool = False
    mining: Mining = "hard"
    bones_per_batch: int = 36
    views_per_bone: int = 2
    positive_candidates: int = 3
    neighbours: int = 11
    mirror: bool = False
    variants_per_bone: int | None = None
    drawn: float = 0.5
    poses_per_variant: int = 10
    presets: tuple[str, ...] = ("ideal", "ideal", "clinic", "clinic", "clinic")
    fresh: bool = False
    steps: int = 3000
    minutes: float | None = None
    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = 2e-3
    backbone_rate: float = 1.0
    weight_decay: float = 1e-4
    pretrained: bool = False
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    seed: int = 0


# A network that knows something already would forget it at the usual rate. Of 2,000 steps, five
# bones never seen were told apart no better, and the nearest fingerprint was less often that of
# the nearest shape.
_REFINING_RATE, _REFINING_STEPS = 1e-3, 800


def refining(settings: TrainingSettings) -> TrainingSettings:
    """The same settings for a network that begins as a trained one."""
    return replace(
        settings,
        learning_rate=min(settings.learning_rate, _REFINING_RATE),
        steps=min(settings.steps, _REFINING_STEPS),
    )
