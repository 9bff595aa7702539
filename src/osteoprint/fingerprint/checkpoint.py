"""A training on disk: what it needs to go on, as if it had not been stopped."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from osteoprint.errors import ModelError
from osteoprint.fingerprint.encoder import Encoder
from osteoprint.fingerprint.hard_positives import HardPositives


class Checkpoint:
    """The state of a training on disk: weights, optimiser, step and what films were last
    like, in one safetensors file."""

    def __init__(
        self,
        encoder: Encoder,
        optimiser: torch.optim.Optimizer,
        settings: dict[str, Any],
        trained_on: dict[str, Any],
        path: Path | None,
        hard: HardPositives | None = None,
    ) -> None:
        self.encoder, self.optimiser, self.path, self.hard = encoder, optimiser, path, hard
        # How long it may go on, and what it began with, matter no more.
        wanted = settings | {"minutes": None, "pretrained": None} | trained_on
        self.signature = json.dumps(wanted, sort_keys=True)
        self.saved_at = self._begun = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it has been going on, before it was interrupted as well."""
        return time.monotonic() - self._begun

    def resume(self) -> int:
        """Load the checkpoint if there is one; returns the step to go on with."""
        if self.path is None or not self.path.is_file():
            return 0
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
            state = load_file(self.path)
        except SafetensorError:
            raise ModelError(
                self.path, "is damaged", "delete it, or train without --resume"
            ) from None
        if metadata.get("signature") != self.signature:
            raise ModelError(
                self.path,
                "is a checkpoint of other settings or bones",
                "delete it, or train without --resume",
            )
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
        if self.hard is not None:
            self.hard.load({k[5:]: v for k, v in state.items() if k.startswith("hard.")})
        self._begun = time.monotonic() - float(metadata.get("seconds", 0.0))
        return int(metadata["step"])

    def save_sometimes(self, step: int, seconds: float = 20.0) -> None:
        """Write the checkpoint when the last one is older than ``seconds``."""
        if time.monotonic() - self.saved_at >= seconds:
            self.save(step)

    def save(self, step: int) -> None:
        """Write the checkpoint, whole or not at all, where one is wanted."""
        if self.path is None:
            return
        tensors = {f"weights.{k}": v.contiguous() for k, v in self.encoder.state_dict().items()}
        for index, values in self.optimiser.state_dict()["state"].items():
            for name, value in values.items():
                tensors[f"optimiser.{index}.{name}"] = torch.as_tensor(value).contiguous()
        if self.hard is not None:
            tensors |= {f"hard.{k}": v for k, v in self.hard.state().items()}
        partial = self.path.with_name(self.path.name + ".partial")
        said = {"signature": self.signature, "step": str(step), "seconds": f"{self.seconds:.1f}"}
        save_file(tensors, partial, metadata=said)
        partial.replace(self.path)
        self.saved_at = time.monotonic()
