"""The training loop: P bones × K views a step, seeded, within a number of steps or minutes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from osteoprint.errors import ModelError
from osteoprint.fingerprint.encoder import COMPACT, Encoder, Model, ModelCard
from osteoprint.fingerprint.losses import shape_loss, triplet_accuracy, triplet_loss
from osteoprint.fingerprint.samples import from_bytes, vary
from osteoprint.xray.standard import StandardFrame


@dataclass(frozen=True)
class TrainingSettings:
    """Everything a training depends on besides its bones.

    ``variants_per_bone`` counts the bone itself and stretched ones that stand beside it as
    individuals of their own: two dozen bones alone do not show a network what "a little
    longer" looks like. ``minutes`` stops earlier than ``steps`` would; only a run that is
    not stopped by it can be repeated exactly.
    """

    backbone: str = COMPACT
    loss: Literal["triplet", "shape"] = "shape"
    dimension: int = 128
    margin: float = 0.1
    bones_per_batch: int = 18
    views_per_bone: int = 3
    variants_per_bone: int = 6
    poses_per_variant: int = 12
    steps: int = 600
    minutes: float | None = None
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    pretrained: bool = False
    seed: int = 0


Progress = Callable[[float, float], None]


def train(
    pictures: NDArray[np.uint8],
    identifiers: list[str],
    frame: StandardFrame,
    settings: TrainingSettings,
    *,
    rms_mm: NDArray[np.float64] | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Model:
    """Train an encoder.

    Parameters
    ----------
    pictures : (bones, poses, 2, rows, columns) uint8, from ``samples.render_set``.
    identifiers : names of the bones that were used, for the card.
    frame : the scale of the pictures, kept in the card.
    settings : see :class:`TrainingSettings`.
    rms_mm : (bones, bones) surface RMS, needed by the loss ``shape``.
    checkpoint : a file kept up to date while training; training goes on from it if it
        exists and was made with the same settings and bones.
    progress : called with (share done, current loss).

    Raises ModelError for fewer than two bones, for ``shape`` without ``rms_mm``, and for a
    checkpoint of other settings.
    """
    if len(pictures) < 2:
        raise ModelError("training", "needs at least two bones", "ingest more bones")
    if settings.loss == "shape" and rms_mm is None:
        raise ModelError("--loss shape", "needs surfaces", "ingest bones with surfaces")
    torch.manual_seed(settings.seed)
    encoder = Encoder(settings.backbone, settings.dimension, pretrained=settings.pretrained)
    optimiser = torch.optim.AdamW(
        encoder.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    run = _Run(encoder, optimiser, settings, identifiers, checkpoint)
    first = run.resume()
    target = torch.tensor(rms_mm, dtype=torch.float32) if rms_mm is not None else None
    scale = _typical_rms(rms_mm) if rms_mm is not None else 1.0
    started, done, loss_value = time.monotonic(), first, float("nan")
    encoder.train()
    for step in range(first, settings.steps):
        share = step / settings.steps
        if settings.minutes is not None:
            share = max(share, (time.monotonic() - started) / 60.0 / settings.minutes)
            if share >= 1.0:
                break
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * _schedule(share)
        batch, labels = _batch(pictures, settings, step)
        embeddings = encoder(batch)
        if settings.loss == "shape" and target is not None:
            loss = shape_loss(embeddings, labels, target, scale, settings.margin)
        else:
            loss = triplet_loss(embeddings, labels, settings.margin)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        loss_value, done = float(loss.detach()), step + 1
        run.save_sometimes(done)
        if progress:
            progress(share, loss_value)
    encoder.eval()
    card = ModelCard(
        backbone=settings.backbone,
        dimension=settings.dimension,
        frame=frame,
        loss=settings.loss,
        trained_on={"bones": identifiers},
        settings=asdict(settings),
        figures={"steps": float(done)},
    )
    model = Model(encoder, card)
    held = _training_accuracy(model, pictures, settings)
    card.figures["triplet accuracy on training bones"] = held
    run.finish()
    return model


def _typical_rms(rms_mm: NDArray[np.float64]) -> float:
    """Half the median RMS between different bones: near and far spread over the whole range."""
    off = rms_mm[~np.eye(len(rms_mm), dtype=bool)]
    return max(float(np.median(off)) / 2.0, 1e-3)


def _schedule(share: float) -> float:
    """Warm up over 4 % of the run, then a cosine down to 1 %."""
    if share < 0.04:
        return max(share / 0.04, 0.02)
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * (share - 0.04) / 0.96))


def _batch(
    pictures: NDArray[np.uint8], settings: TrainingSettings, step: int
) -> tuple[Tensor, Tensor]:
    """The pictures and labels of one step; a function of the seed and the step alone."""
    rng = np.random.default_rng([settings.seed, step])
    count = min(settings.bones_per_batch, len(pictures))
    bones = rng.choice(len(pictures), count, replace=False)
    labels = np.repeat(bones, settings.views_per_bone)
    views = rng.integers(0, pictures.shape[1], len(labels))
    images = torch.from_numpy(from_bytes(pictures[labels, views]))
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    return vary(images, generator), torch.from_numpy(labels)


def _training_accuracy(
    model: Model, pictures: NDArray[np.uint8], settings: TrainingSettings
) -> float:
    """Triplet accuracy on a few unvaried pictures of each bone."""
    views = min(6, pictures.shape[1])
    images = from_bytes(pictures[:, :views].reshape(-1, *pictures.shape[2:]))
    labels = torch.arange(len(pictures)).repeat_interleave(views)
    return triplet_accuracy(torch.from_numpy(model.embed(images)), labels, settings.margin)


class _Run:
    """The state of a training on disk: weights, optimiser and step, in one safetensors file."""

    def __init__(
        self,
        encoder: Encoder,
        optimiser: torch.optim.Optimizer,
        settings: TrainingSettings,
        identifiers: list[str],
        path: Path | None,
    ) -> None:
        self.encoder, self.optimiser, self.path = encoder, optimiser, path
        wanted = asdict(settings) | {"minutes": None, "bones": identifiers}
        self.signature = json.dumps(wanted, sort_keys=True)
        self.saved_at = time.monotonic()

    def resume(self) -> int:
        """Load the checkpoint if there is one; returns the step to go on with."""
        if self.path is None or not self.path.is_file():
            return 0
        from safetensors import safe_open

        with safe_open(self.path, "pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("signature") != self.signature:
            raise ModelError(
                self.path,
                "is a checkpoint of other settings or bones",
                "delete it, or train without --resume",
            )
        state = load_file(self.path)
        weights = {k[8:]: v for k, v in state.items() if k.startswith("weights.")}
        self.encoder.load_state_dict(weights)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            if key.startswith("optimiser."):
                _, index, name = key.split(".")
                moments.setdefault(int(index), {})[name] = value
        self.optimiser.load_state_dict(
            {"state": moments, "param_groups": self.optimiser.state_dict()["param_groups"]}
        )
        return int(metadata["step"])

    def save_sometimes(self, step: int, seconds: float = 20.0) -> None:
        """Write the checkpoint when the last one is older than ``seconds``."""
        if self.path is None or time.monotonic() - self.saved_at < seconds:
            return
        tensors = {f"weights.{k}": v.contiguous() for k, v in self.encoder.state_dict().items()}
        for index, values in self.optimiser.state_dict()["state"].items():
            for name, value in values.items():
                tensors[f"optimiser.{index}.{name}"] = torch.as_tensor(value).contiguous()
        partial = self.path.with_name(self.path.name + ".partial")
        save_file(tensors, partial, metadata={"signature": self.signature, "step": str(step)})
        partial.replace(self.path)
        self.saved_at = time.monotonic()

    def finish(self) -> None:
        """The model is made: the checkpoint has served."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
