"""The pictures of each step of a training: P bones, K views of each."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from osteoprint.fingerprint.hard_positives import HardPositives, Views
from osteoprint.fingerprint.samples import from_bytes, vary
from osteoprint.fingerprint.settings import TrainingSettings

Pictures = NDArray[np.uint8]


class PictureSource(Protocol):
    """Where the pictures of a training come from: there before it, or made for every step."""

    @property
    def slow(self) -> bool:
        """Whether to ask for a step's pictures while the step before is still learnt from."""

    def __len__(self) -> int:
        """How many bones there are."""

    def take(self, bones: NDArray[np.int64], rng: np.random.Generator) -> Pictures:
        """(n, 2, rows, columns), see ``samples.to_bytes``: a view, drawn, of each of (n,) bones."""

    def some(self, bones: NDArray[np.int64], views: int) -> Pictures:
        """(n, up to `views`, 2, rows, columns) of (n,) bones, the same ones every time."""

    def sha256(self) -> str:
        """Of all that the pictures depend on, or of the pictures."""


@dataclass(frozen=True, eq=False)
class Stored:
    """Pictures that are there: (bones, poses, 2, rows, columns)."""

    pictures: Pictures
    slow = False

    def __len__(self) -> int:
        return len(self.pictures)

    def take(self, bones: NDArray[np.int64], rng: np.random.Generator) -> Pictures:
        """See :class:`PictureSource`."""
        return self.pictures[bones, rng.integers(0, self.pictures.shape[1], len(bones))]

    def some(self, bones: NDArray[np.int64], views: int) -> Pictures:
        """See :class:`PictureSource`."""
        return self.pictures[bones, :views]

    def sha256(self) -> str:
        """See :class:`PictureSource`."""
        digest = hashlib.sha256(str(self.pictures.shape).encode())
        for block in self.pictures:
            digest.update(block.tobytes())
        return digest.hexdigest()


class Batches:
    """The pictures of each step.

    Where shapes are known, half of the bones are near neighbours of the other half: what is
    easily told apart teaches little. Where bones of the other side are shown too (`mirror`), half
    of those neighbours are mirror images instead, as a person's other leg would be.

    Parameters
    ----------
    source : of the pictures.
    settings : as in ``training.train``.
    rms_mm : (bones, bones), or None.
    kinds : (bones,) only bones of one kind are shown together; None: all are of one.
    rank : which of several devices this is.
    device : where the pictures are wanted, and changed.
    hard : what stored films were last like, if those least alike are to be shown together.
    """

    def __init__(
        self,
        source: PictureSource,
        settings: TrainingSettings,
        rms_mm: NDArray[np.float64] | None,
        kinds: NDArray[np.int64] | None,
        rank: int,
        device: torch.device | str = "cpu",
        hard: HardPositives | None = None,
    ) -> None:
        self._hard = hard if isinstance(source, Stored) else None
        self._last: tuple[NDArray[np.int64], Views, NDArray[np.bool_]] | None = None
        self._source, self._settings, self._rank, self._device = source, settings, rank, device
        labels = np.zeros(len(source), np.int64) if kinds is None else kinds
        self._members = [np.flatnonzero(labels == kind) for kind in np.unique(labels)]
        self._near = None
        if settings.neighbours and rms_mm is not None:
            # What is no number comes last, after what is not known: no bone is its own neighbour.
            apart = np.where(labels[:, None] == labels[None, :], rms_mm, np.nan)
            np.fill_diagonal(apart, np.nan)
            fewest = min(len(members) for members in self._members) - 1
            count = min(settings.neighbours, fewest)
            self._near = np.argsort(apart, axis=1, kind="stable")[:, :count]
        self._ahead: tuple[int, Future[tuple[Tensor, Tensor]]] | None = None
        self._hand = ThreadPoolExecutor(1) if source.slow else None

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """(P·K, 2, H, W) pictures and (P·K,) labels; a function of seed, step and device.

        And, where those least alike are shown, of all that :meth:`remember` was told before.
        Mirror images are bones of their own, numbered on after those there are.
        """
        if self._hand is None:
            return self._made(step)
        ready = self._ahead
        made = ready[1].result() if ready and ready[0] == step else self._made(step)
        if step + 1 < self._settings.steps:
            self._ahead = step + 1, self._hand.submit(self._made, step + 1)
        return made

    def _made(self, step: int) -> tuple[Tensor, Tensor]:
        of = self._settings
        rng = np.random.default_rng([of.seed, step, self._rank] if self._rank else [of.seed, step])
        members = self._members[int(rng.integers(len(self._members)))]
        count = min(of.bones_per_batch, len(members))
        twins = count // 4 if of.mirror else 0
        if self._near is None:
            bones = rng.choice(members, count - twins, replace=False)
        else:
            some = rng.choice(members, (count + 1) // 2, replace=False)
            likened = some[: len(some) - twins]
            beside = self._near[likened, rng.integers(0, self._near.shape[1], len(likened))]
            bones = np.unique(np.concatenate([some, beside]))
        bones = np.concatenate([bones, rng.choice(bones, twins, replace=False)]) if twins else bones
        mirrored = np.arange(len(bones)) >= len(bones) - twins
        if of.mirror and rng.random() < 0.5:
            mirrored = ~mirrored
        views = of.views_per_bone
        pictures = self._films(bones, mirrored, rng)
        images = torch.from_numpy(from_bytes(pictures)).to(self._device)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        flipped = torch.from_numpy(np.repeat(mirrored, views)).to(self._device)
        if of.mirror:
            images = torch.where(flipped[:, None, None, None], images.flip(3), images)
        labels = np.repeat(bones + len(self._source) * mirrored, views)
        return vary(images, generator), torch.from_numpy(labels)

    def _films(
        self, bones: NDArray[np.int64], mirrored: NDArray[np.bool_], rng: np.random.Generator
    ) -> Pictures:
        """(P·K, 2, rows, columns) of (P,) bones."""
        views = self._settings.views_per_bone
        if self._hard is None:
            return self._source.take(np.repeat(bones, views), rng)
        assert isinstance(self._source, Stored)
        shown = self._hard.draw(bones, views, self._settings.positive_candidates, rng)
        self._last = bones, shown, ~mirrored
        return self._source.pictures[np.repeat(bones, views), shown.ravel()]

    def remember(self, fingerprints: Tensor) -> None:
        """Note what the network made of the last step's pictures, (P·K, d)."""
        if self._hard is None or self._last is None:
            return
        bones, shown, as_they_are = self._last
        # A film and its mirror image are no two views of one bone.
        kept = fingerprints.reshape(*shown.shape, -1)[torch.from_numpy(as_they_are)]
        self._hard.remember(bones[as_they_are], shown[as_they_are], kept.flatten(0, 1))
