"""A trained network with its card: what it is, what it was trained on, what was measured.

Weights are safetensors, the card is JSON beside them; no pickle is ever read.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from osteoprint.errors import ModelError
from osteoprint.fingerprint.encoder import MOST_LOOKS, Encoder, Network
from osteoprint.fingerprint.samples import from_bytes
from osteoprint.xray.standard import StandardFrame

# Raised when films are read another way, too: a network knows only what it was shown.
CARD_FORMAT = 4
# The network that comes with the program: ``train --phantoms`` made it, of no real bone.
SHIPPED = Path(__file__).with_name("shipped.safetensors")


@dataclass
class ModelCard:
    """What a model is, kept as JSON beside its weights.

    Attributes
    ----------
    network : what it is made of.
    frame : the standard pictures it reads.
    loss : what it was trained for.
    trained_on : "bones": identifiers of those it saw; a bank's are made from what is in the files.
        "before": the same of the model it began as, where it did not begin at random.
    settings : every setting of the training.
    figures : what was measured at the end of the training, in words -> value.
    scale : "fixed": ``frame`` is of the size that the training's bones had; "of the bank": the
        network was trained on bones of all sizes, each as large on its picture as the longest of
        its bank allows, and ``frame`` is of a bank whose longest is 1 mm; see
        :meth:`Model.at_scale`.
    """

    network: Network
    frame: StandardFrame
    loss: str
    trained_on: dict[str, Any]
    settings: dict[str, Any]
    figures: dict[str, float] = field(default_factory=dict)
    scale: Literal["fixed", "of the bank"] = "fixed"
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
            network, frame = Network(**values["network"]), StandardFrame(**values["frame"])
            card = cls(**{**values, "network": network, "frame": frame})
            card.check()
            return card
        except (KeyError, TypeError, ValueError):
            raise ModelError(source, "is no model card", "train the model again") from None

    def check(self) -> None:
        """Raises ValueError or TypeError where a value is none that a training writes."""
        network, frame = self.network, self.frame
        widths = (
            *network.reductions, *network.grid, network.dimension, network.looks,
            frame.rows, frame.columns,
        )  # fmt: skip
        if not all(isinstance(width, int) and width > 0 for width in widths):
            raise ValueError("sizes are whole numbers above 0")
        if len(network.grid) != 2:
            raise ValueError("a grid has rows and columns")
        if network.looks > MOST_LOOKS:
            raise ValueError("more looks than there are ways to move")
        if not 0.0 <= network.shape_share <= 0.5:
            raise ValueError("at most half of the numbers are for shapes")
        if network.shape_weight is not None and not 0.0 < network.shape_weight < 1.0:
            raise ValueError("a share of the length, and neither none nor all of it")
        if not (isinstance(network.backbone, str) and frame.spacing_mm > 0):
            raise ValueError("a backbone has a name, a pixel a size")
        if not all(isinstance(v, dict) for v in (self.trained_on, self.figures, self.settings)):
            raise ValueError("what it was trained on, figures and settings go by names")
        if not isinstance(self.trained_on.get("bones"), list):
            raise ValueError("no bones")
        if self.scale not in ("fixed", "of the bank"):
            raise ValueError("no such scale")


@dataclass(frozen=True, eq=False)
class Model:
    """An encoder with its card, ready for use."""

    encoder: Encoder
    card: ModelCard

    def at_scale(self, longest_mm: float) -> Model:
        """The model for a bank whose longest bone is so long; itself where its scale is fixed."""
        if self.card.scale == "fixed":
            return self
        unit = self.card.frame
        frame = StandardFrame(unit.rows, unit.columns, unit.spacing_mm * longest_mm)
        return Model(self.encoder, replace(self.card, frame=frame, scale="fixed"))

    def embed(self, pictures: NDArray[np.float32], batch: int = 128) -> NDArray[np.float32]:
        """(n, 2, H, W) standard pictures in 0...1 -> (n, d) float32 fingerprints.

        Worked out where the encoder is.
        """
        self.encoder.eval()
        device = next(self.encoder.parameters()).device
        parts = []
        with torch.inference_mode():
            for start in range(0, len(pictures), batch):
                block = np.ascontiguousarray(pictures[start : start + batch])
                parts.append(self.encoder(torch.from_numpy(block).to(device)).cpu().numpy())
        nothing = np.zeros((0, self.card.network.dimension), np.float32)
        return np.concatenate(parts) if parts else nothing

    def of_shape(self, fingerprints: NDArray[np.float32]) -> NDArray[np.float32]:
        """(..., d) fingerprints -> (..., s) of unit length: what shapes are to be compared by.

        All of it where none of its numbers were fitted to shapes.
        """
        network = self.card.network
        fitted = self.card.loss == "shape" and network.shape_weight is not None
        count = network.shape_numbers if fitted else 0
        part = fingerprints[..., -count:]  # all of them for 0
        return np.asarray(part / np.linalg.norm(part, axis=-1, keepdims=True), np.float32)

    def shape_of_views(self, fingerprints: NDArray[np.float32]) -> NDArray[np.float32]:
        """(..., views, d) of one bone -> (..., s) of unit length: what its shape is compared by.

        A bone has one shape, whatever the view: the mean of what its views say of it. By the
        nearest view, one that is off decides.
        """
        mean = self.of_shape(fingerprints).mean(axis=-2)
        return np.asarray(mean / np.linalg.norm(mean, axis=-1, keepdims=True), np.float32)

    def embed_bytes(self, pictures: NDArray[np.uint8], batch: int = 1024) -> NDArray[np.float32]:
        """The same of (n, 2, H, W) uint8, see ``samples.to_bytes``; little memory for many."""
        blocks = (pictures[k : k + batch] for k in range(0, len(pictures), batch))
        parts = [self.embed(from_bytes(block)) for block in blocks]
        return np.concatenate(parts) if parts else self.embed(from_bytes(pictures))


def save_model(model: Model, path: Path, *, half: bool = False) -> None:
    """Write weights to ``path`` (.safetensors) and the card to ``<path without ending>.json``.

    Each file appears whole or not at all. ``half`` keeps 16 bits of each weight: half the size,
    fingerprints that differ in the third decimal.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    weights = {k: v.contiguous() for k, v in model.encoder.state_dict().items()}
    if half:
        weights = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    # Besides being of use to others: the same weights at another scale, or used otherwise, make
    # other fingerprints, and are another file.
    network, usual = model.card.network, model.card.network.in_training
    used = {k: v for k, v in asdict(network).items() if v != getattr(usual, k)}
    said = json.dumps(asdict(model.card.frame) | used)
    save_file(weights, partial, metadata={"frame": said})
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
    except (OSError, ValueError, KeyError, AttributeError, TypeError, IndexError):
        raise ModelError(card_path, "is no model card", "keep it beside its weights") from None
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ModelError(path, "does not match its card", "copy both files again")
    card = ModelCard.from_json(values, str(card_path))
    try:
        encoder = Encoder(card.network)
        encoder.load_state_dict(load_file(path))
    except (RuntimeError, TypeError, ValueError, SafetensorError):
        raise ModelError(path, "does not fit its network", "train it again") from None
    encoder.eval()
    return Model(encoder, card)
