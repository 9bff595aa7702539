"""The training loop: P bones × K views a step, seeded, within a number of steps or minutes."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.logger import Logger
from numpy.typing import NDArray
from torch import Tensor

from osteoprint.errors import ModelError
from osteoprint.fingerprint.batches import Batches, PictureSource, Stored
from osteoprint.fingerprint.checkpoint import Checkpoint
from osteoprint.fingerprint.encoder import Encoder, Network
from osteoprint.fingerprint.losses import (
    OTHER_LOSSES,
    other_loss,
    shape_loss,
    squared_distances,
    triplet_accuracy,
    triplet_loss,
)
from osteoprint.fingerprint.mining import Mining, mine
from osteoprint.fingerprint.model import Model, ModelCard
from osteoprint.fingerprint.samples import from_bytes
from osteoprint.xray.standard import StandardFrame

# Layers that are reduced one after the other, with no other step between, came to span five
# dimensions of 128; one layer tells far more bones apart.
DEFAULT_NETWORK = Network(contrast=True, reductions=())
# Views of each bone on which a trained network is looked at.
_HELD = 6
# And no more bones than these, evenly drawn: all pairs of their films are compared.
_MOST = 1200


@dataclass(frozen=True)
class TrainingSettings:
    """Everything a training depends on besides its bones.

    Attributes
    ----------
    network : what is trained.
    loss : "shape" (ours), "triplet" (the paper's), or one of ``OTHER_LOSSES``.
    margin, squared, tertiary, mining : of the triplets, see ``triplet_loss`` and ``mine``.
    bones_per_batch, views_per_bone : P bones × K views a step.
    neighbours : half of the bones of a step are drawn from so many nearest in shape of the other
        half, where shapes are known; 0: all are drawn at random.
    mirror : bones are shown as those of the other side, too, which are bones of their own; a
        quarter of a step's bones stand beside their own mirror image.
    variants_per_bone : the bone itself and changed ones that stand beside it as individuals of
        their own: two dozen bones alone do not show a network what "a little longer" looks like.
        None: as many as make 512 of all bones, and at least two.
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
    bones_per_batch: int = 24
    views_per_bone: int = 3
    neighbours: int = 11
    mirror: bool = False
    variants_per_bone: int | None = None
    poses_per_variant: int = 12
    presets: tuple[str, ...] = ("ideal", "ideal", "clinic", "clinic", "clinic")
    fresh: bool = False
    steps: int = 2200
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


Progress = Callable[[float, float], None]


def train(
    pictures: NDArray[np.uint8] | PictureSource,
    identifiers: list[str],
    frame: StandardFrame,
    settings: TrainingSettings,
    *,
    rms_mm: NDArray[np.float64] | None = None,
    kinds: NDArray[np.int64] | None = None,
    start: Model | None = None,
    checkpoint: Path | None = None,
    log: Path | None = None,
    progress: Progress | None = None,
) -> Model:
    """Train an encoder.

    Parameters
    ----------
    pictures : (bones, poses, 2, rows, columns) uint8, from ``samples.render_set``; or where such
        pictures come from.
    identifiers : names of the bones that were used, for the card.
    frame : the scale of the pictures, kept in the card.
    settings : see :class:`TrainingSettings`.
    rms_mm : (bones, bones) surface RMS, needed by the loss ``shape``; infinity where it is not
        known, between bones of two kinds or sides: these are only kept apart.
    kinds : (bones,) which kind of bone each is, where there are several: bones of two kinds
        are never compared.
    start : begin with the weights of this model, of the same network, instead of at random.
    checkpoint : a file kept up to date while training; training goes on from it if it
        exists and was made with the same settings and bones. It stays, complete, at the end.
    log : a folder for what TensorBoard shows: loss and learning rate of every step.
    progress : called with (share done, current loss).

    Raises ModelError for fewer than two bones, for ``shape`` without ``rms_mm``, for a
    ``start`` of another network, for a checkpoint of other settings, and for a `log` without
    TensorBoard.
    """
    if len(pictures) < 2:
        raise ModelError("training", "needs at least two bones", "ingest more bones")
    if settings.loss == "shape" and rms_mm is None:
        raise ModelError("--loss shape", "needs surfaces", "ingest bones with surfaces")
    if settings.loss not in ("shape", "triplet", *OTHER_LOSSES):
        known = ", ".join(("shape", "triplet", *OTHER_LOSSES))
        raise ModelError("--loss", f"knows no {settings.loss!r}", f"use one of {known}")
    if settings.devices > 1 and settings.neighbours:
        # Steps have as many bones as they happen to have; all devices need the same number.
        raise ModelError("neighbours", "is for one device", "set it to 0, or devices to 1")
    fabric = _fabric(settings, log)
    torch.manual_seed(settings.seed)
    source = Stored(pictures) if isinstance(pictures, np.ndarray) else pictures
    trained_on: dict[str, Any] = {"bones": identifiers, "data_sha256": source.sha256()}
    encoder = Encoder(settings.network, pretrained=settings.pretrained and start is None)
    if start is not None:
        if start.card.network != settings.network:
            raise ModelError("training", "starts from another network", "train from nothing")
        encoder.load_state_dict(start.encoder.state_dict())
        trained_on["before"] = start.card.trained_on
    # The optimiser's state, when gone on with, has to be where the weights are.
    encoder = encoder.to(fabric.device)
    optimiser = _optimiser(encoder, settings)
    run = Checkpoint(encoder, optimiser, asdict(settings), trained_on, checkpoint)
    first = run.resume()
    # A quarter faster on a CPU, and what tensor cores want.
    encoder = encoder.to(memory_format=torch.channels_last)
    shared, optimising = fabric.setup(encoder, optimiser)
    criterion = _Criterion(settings, rms_mm, fabric.device)
    batches = Batches(source, settings, rms_mm, kinds, fabric.global_rank, fabric.device)
    done = first
    shared.train()
    with _no_tiny_numbers():
        for step in range(first, settings.steps):
            share = step / settings.steps
            if settings.minutes is not None:
                # All devices have to stop at the same step.
                share = max(share, fabric.broadcast(run.seconds / 60.0 / settings.minutes))
                if share >= 1.0:
                    break
            for group in optimiser.param_groups:
                group["lr"] = group["full_lr"] * _schedule(share)
            batch, labels = batches(step)
            embeddings = shared(batch.to(memory_format=torch.channels_last))
            loss = criterion(
                _gathered(fabric, embeddings), _gathered(fabric, labels.to(fabric.device)), step
            )
            optimising.zero_grad(set_to_none=True)
            fabric.backward(loss)
            optimising.step()
            loss_value, done = float(loss.detach()), step + 1
            fabric.log_dict(
                {"loss": loss_value, "learning rate": optimiser.param_groups[-1]["lr"]}, step
            )
            if fabric.is_global_zero:
                run.save_sometimes(done)
            if progress:
                progress(share, loss_value)
    encoder.eval()
    card = ModelCard(
        network=settings.network,
        frame=frame,
        loss=settings.loss,
        trained_on=trained_on,
        settings=json.loads(json.dumps(asdict(settings))),  # as it will be read again
        figures={"steps": float(done)},
    )
    model = Model(encoder, card)
    card.figures |= _on_training_bones(model, source, settings)
    encoder.to("cpu")
    if fabric.is_global_zero:
        run.save(done)
    if fabric.loggers:
        fabric.log_dict(card.figures, done)
        fabric.logger.finalize("success")
    return model


@contextmanager
def _no_tiny_numbers() -> Iterator[None]:
    """Numbers below 1e-38 are 0 to this thread, as the squares of small gradients often are.

    A CPU takes a hundred times as long over them.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def check_log() -> None:
    """Raises ModelError where there is no TensorBoard to write a log for."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ModelError(
            "--log", "needs the package tensorboard", "pip install 'osteoprint[tensorboard]'"
        )


def _fabric(settings: TrainingSettings, log: Path | None) -> Fabric:
    """What runs the training, and writes what TensorBoard shows where that is wanted."""
    loggers: list[Logger] = []
    if log is not None:
        check_log()
        from lightning_fabric.loggers.tensorboard import TensorBoardLogger

        loggers.append(TensorBoardLogger(log, name=None))
    fabric = Fabric(
        accelerator=settings.accelerator, devices=settings.devices, precision=settings.precision,
        loggers=loggers,
    )  # fmt: skip
    fabric.launch()
    return fabric


class _Criterion:
    """The loss of a step, from its embeddings."""

    def __init__(
        self,
        settings: TrainingSettings,
        rms_mm: NDArray[np.float64] | None,
        device: torch.device,
    ) -> None:
        self._settings, self._device = settings, device
        self._scale = 1.0 if rms_mm is None else _typical_rms(rms_mm)
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
            return shape_loss(embeddings, labels, rms, self._scale)
        drawn = torch.Generator(self._device).manual_seed(of.seed * 1_000_003 + step)
        triplets = mine(embeddings, labels, of.mining, margin=of.margin, generator=drawn)
        return triplet_loss(
            embeddings, triplets, of.margin, squared=of.squared, tertiary=of.tertiary
        )


def _gathered(fabric: Fabric, values: Tensor) -> Tensor:
    """(B, ...) of this device -> (devices × B, ...) of all; gradients flow back."""
    if fabric.world_size == 1:
        return values
    everyone = fabric.all_gather(values, sync_grads=values.requires_grad)
    return cast(Tensor, everyone).flatten(0, 1)


def _optimiser(encoder: Encoder, settings: TrainingSettings) -> torch.optim.Optimizer:
    """The optimiser, the backbone's layers with a learning rate of their own."""
    rate = settings.learning_rate
    groups = [
        {"params": list(part.parameters()), "lr": r, "full_lr": r}
        for part, r in (
            (encoder.backbone, rate * settings.backbone_rate),
            (encoder.reductions, rate),
        )
    ]
    if settings.optimiser == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, weight_decay=settings.weight_decay)
    kind = torch.optim.AdamW if settings.optimiser == "adamw" else torch.optim.Adam
    return kind(groups, weight_decay=settings.weight_decay)


def _typical_rms(rms_mm: NDArray[np.float64]) -> float:
    """Half the median RMS between different bones: near and far spread over the whole range."""
    off = rms_mm[~np.eye(len(rms_mm), dtype=bool) & np.isfinite(rms_mm)]
    if not len(off):
        return 1.0
    return max(float(np.median(off)) / 2.0, 1e-3)


def _schedule(share: float) -> float:
    """Warm up over 4 % of the run, then a cosine down to 1 %."""
    if share < 0.04:
        return max(share / 0.04, 0.02)
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * (share - 0.04) / 0.96))


def _on_training_bones(
    model: Model, source: PictureSource, settings: TrainingSettings
) -> dict[str, float]:
    """Triplet accuracy and threshold on a few unvaried pictures of each bone.

    The threshold is the squared distance above which as many of one bone's pairs lie as of two
    bones' lie below. The network has learnt these bones; a bank's own threshold comes from `enrol`.
    """
    some = np.arange(len(source))[:: math.ceil(len(source) / _MOST)]
    shown = source.some(some, _HELD)
    labels = torch.arange(len(shown)).repeat_interleave(shown.shape[1])
    embedded = torch.from_numpy(model.embed(from_bytes(shown.reshape(-1, *shown.shape[2:]))))
    apart, same = squared_distances(embedded), labels[:, None] == labels[None, :]
    once = torch.ones_like(same).triu(1)
    genuine, impostor = apart[same & once], apart[~same & once].sort().values
    # As the share of one bone's pairs beyond it falls, that of two bones' below it rises.
    levels = genuine.sort().values
    missed = 1.0 - torch.arange(1, len(levels) + 1) / len(levels)
    matched = torch.searchsorted(impostor, levels, right=True) / len(impostor)
    figures = {
        "triplet accuracy on training bones": triplet_accuracy(embedded, labels, settings.margin)
    }
    if len(levels) and len(impostor):
        level = levels[int((missed - matched).abs().argmin())]
        beyond = impostor[impostor > level][:1]
        figures["threshold on training bones"] = float(torch.cat([level[None], beyond]).mean())
    return figures
