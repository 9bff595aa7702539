"""The training loop: P bones × K views a step, seeded, within a number of steps or minutes."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from osteoprint.errors import ModelError
from osteoprint.fingerprint.batches import Batches, PictureSource, Stored
from osteoprint.fingerprint.checkpoint import Checkpoint
from osteoprint.fingerprint.criterion import Criterion
from osteoprint.fingerprint.encoder import Encoder
from osteoprint.fingerprint.hard_positives import HardPositives
from osteoprint.fingerprint.losses import (
    OTHER_LOSSES,
    squared_distances,
    triplet_accuracy,
)
from osteoprint.fingerprint.model import Model, ModelCard
from osteoprint.fingerprint.samples import from_bytes
from osteoprint.fingerprint.settings import TrainingSettings
from osteoprint.fingerprint.shape_numbers import SHAPE_WEIGHT, fit_shape_numbers
from osteoprint.xray.standard import StandardFrame

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.loggers.logger import Logger

# Views of each bone on which a trained network is looked at.
_HELD = 6
# And no more bones than these, evenly drawn: all pairs of their films are compared.
_MOST = 1200
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
    start : begin with the weights of this model, of the same network, instead of at random. How
        often that looked, and what its numbers for shapes weigh, matter not: the settings say it.
    checkpoint : a file kept up to date while training; training goes on from it if it
        exists and was made with the same settings and bones. It stays, complete, at the end.
    log : a folder for what TensorBoard shows: loss and learning rate of every step.
    progress : called with (share done, current loss).

    Raises ModelError for fewer than two bones, for ``shape`` without ``rms_mm``, for a
    ``start`` of another network, for a checkpoint of other settings, and for a `log` without
    TensorBoard.
    """
    _check(settings, len(pictures), shapes=rms_mm is not None)
    source = Stored(pictures) if isinstance(pictures, np.ndarray) else pictures
    hard = _hard_positives(settings, source)
    fabric = _fabric(settings, log)
    torch.manual_seed(settings.seed)
    trained_on: dict[str, Any] = {"bones": identifiers, "data_sha256": source.sha256()}
    if start is not None:
        trained_on["before"] = start.card.trained_on
    # The optimiser's state, when gone on with, has to be where the weights are.
    encoder = _encoder(settings, start).to(fabric.device)
    optimiser = _optimiser(encoder, settings)
    run = Checkpoint(encoder, optimiser, asdict(settings), trained_on, checkpoint, hard)
    first = run.resume()
    # A quarter faster on a CPU, and what tensor cores want.
    encoder = encoder.to(memory_format=torch.channels_last)
    shared, optimising = fabric.setup(encoder, optimiser)
    criterion = Criterion(settings, rms_mm, fabric.device)
    batches = Batches(source, settings, rms_mm, kinds, fabric.global_rank, fabric.device, hard)
    steps = _Steps(fabric, shared, optimising, criterion, batches)
    done = _run(steps, run, first, settings, progress)
    encoder.eval()
    _fit_to_shapes(encoder, source, settings, rms_mm)
    card = ModelCard(
        network=encoder.network,
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


def _check(settings: TrainingSettings, bones: int, *, shapes: bool) -> None:
    """Raises ModelError for what cannot be trained."""
    if bones < 2:
        raise ModelError("training", "needs at least two bones", "ingest more bones")
    if settings.loss == "shape" and not shapes:
        raise ModelError("--loss shape", "needs surfaces", "ingest bones with surfaces")
    if settings.loss not in ("shape", "triplet", *OTHER_LOSSES):
        known = ", ".join(("shape", "triplet", *OTHER_LOSSES))
        raise ModelError("--loss", f"knows no {settings.loss!r}", f"use one of {known}")
    if settings.devices > 1 and settings.neighbours:
        # Steps have as many bones as they happen to have; all devices need the same number.
        raise ModelError("neighbours", "is for one device", "set it to 0, or devices to 1")
    if settings.positive_candidates < 1:
        raise ModelError("positive_candidates", "is below 1", "give 1 or more")


def _hard_positives(settings: TrainingSettings, source: PictureSource) -> HardPositives | None:
    """What stored films were like, where it matters.

    Raises ModelError for several devices: what is remembered on one no other knows.
    """
    if settings.positive_candidates == 1 or not isinstance(source, Stored):
        return None
    if settings.devices > 1:
        raise ModelError("positive_candidates", "is for one device", "set it or devices to 1")
    films = source.pictures.shape[1]
    return HardPositives(len(source), films, settings.network.dimension)


def _encoder(settings: TrainingSettings, start: Model | None) -> Encoder:
    """What is trained, with the weights that it begins with."""
    encoder = Encoder(settings.network, pretrained=settings.pretrained and start is None)
    if start is not None:
        if start.card.network.in_training != settings.network.in_training:
            raise ModelError("training", "starts from another network", "train from nothing")
        encoder.load_state_dict(start.encoder.state_dict())
    return encoder


@dataclass(frozen=True)
class _Steps:
    """What a step of training needs, the same in all of them."""

    fabric: Fabric
    encoder: torch.nn.Module
    optimiser: torch.optim.Optimizer
    criterion: Criterion
    batches: Batches

    def take(self, step: int, share: float) -> float:
        """One step, at this share of the whole; the loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = group["full_lr"] * _schedule(share)
        batch, labels = self.batches(step)
        embeddings = self.encoder(batch.to(memory_format=torch.channels_last))
        self.batches.remember(embeddings)
        labels = labels.to(self.fabric.device)
        loss = self.criterion(
            _gathered(self.fabric, embeddings), _gathered(self.fabric, labels), step
        )
        self.optimiser.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        self.optimiser.step()
        value = float(loss.detach())
        rate = self.optimiser.param_groups[-1]["lr"]
        self.fabric.log_dict({"loss": value, "learning rate": rate}, step)
        return value


def _run(
    steps: _Steps,
    run: Checkpoint,
    first: int,
    settings: TrainingSettings,
    progress: Progress | None,
) -> int:
    """All steps from the first that is not done yet; how many are done in the end."""
    fabric, done = steps.fabric, first
    steps.encoder.train()
    with _no_tiny_numbers():
        for step in range(first, settings.steps):
            share = step / settings.steps
            if settings.minutes is not None:
                # All devices have to stop at the same step.
                share = max(share, fabric.broadcast(run.seconds / 60.0 / settings.minutes))
                if share >= 1.0:
                    break
            loss, done = steps.take(step, share), step + 1
            if fabric.is_global_zero:
                run.save_sometimes(done)
            if progress:
                progress(share, loss)
    return done


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
    # Slow to import, and not needed by those who ask what this module gives before a training.
    from lightning_fabric import Fabric

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


def _gathered(fabric: Fabric, values: Tensor) -> Tensor:
    """(B, ...) of this device -> (devices × B, ...) of all; gradients flow back."""
    if fabric.world_size == 1:
        return values
    everyone = fabric.all_gather(values, sync_grads=values.requires_grad)
    return cast(Tensor, everyone).flatten(0, 1)


def _fit_to_shapes(
    encoder: Encoder,
    source: PictureSource,
    settings: TrainingSettings,
    rms_mm: NDArray[np.float64] | None,
) -> None:
    """Fit the numbers for shapes; how much they count in use says whether that could be done."""
    fitted = False
    if settings.loss == "shape" and settings.network.shape_numbers and rms_mm is not None:
        with _no_tiny_numbers():
            fitted = fit_shape_numbers(
                encoder, source, rms_mm, steps=settings.steps, seed=settings.seed
            )
    weight = (settings.network.shape_weight or SHAPE_WEIGHT) if fitted else None
    encoder.network = replace(encoder.network, shape_weight=weight)


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
