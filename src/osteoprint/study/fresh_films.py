"""Training films that are taken when they are asked for: no network sees one of them twice."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from osteoprint.fingerprint.clinic_films import read_pair
from osteoprint.fingerprint.samples import SampleBone, random_pose, to_bytes, varied_bone
from osteoprint.fingerprint.settings import TrainingSettings
from osteoprint.study.training_films import part_key, parts_of, rms_between
from osteoprint.study.workers import cores
from osteoprint.xray.standard import StandardFrame

if TYPE_CHECKING:
    from osteoprint.study.experiment import StudyBone

Pictures = NDArray[np.uint8]


class FreshFilms:
    """Bones and their variants before the camera; see ``batches.PictureSource``.

    The bones and variants are those of ``make_training_films``; each variant is made when it is
    first asked for, and kept.

    Parameters
    ----------
    bones : of one kind, with their surfaces.
    frame : the scale of the pictures.
    settings : how many variants, which presets, the seed.

    Attributes
    ----------
    rms_mm : (v, v) surface RMS between the bones, real and changed.
    originals : rows of the bones as they are.
    """

    slow = True

    def __init__(
        self, bones: Sequence[StudyBone], frame: StandardFrame, settings: TrainingSettings
    ) -> None:
        self._bones, self._frame, self._settings = bones, frame, settings
        self._parts = parts_of(bones, frame, settings)
        self._numbers = [
            (part, number)
            for part in self._parts
            for number in range(part.first, part.first + part.count)
        ]
        self._made: dict[int, SampleBone] = {}
        self.originals = np.flatnonzero([number == 0 for _, number in self._numbers])

    @cached_property
    def rms_mm(self) -> NDArray[np.float64]:
        """(v, v) surface RMS between the bones, real and changed."""
        return rms_between(self._bones, self._parts)

    def __len__(self) -> int:
        return len(self._numbers)

    def take(self, bones: NDArray[np.int64], rng: np.random.Generator) -> Pictures:
        """(n, 2, rows, columns): a view of each of (n,) bones. Raises FilmError where a bone
        cannot be seen on its own plain films."""
        seeds = rng.integers(2**62, size=len(bones)).tolist()
        with ThreadPoolExecutor(cores()) as hands:
            # A variant is made once, however many of its views are asked for.
            list(hands.map(self._subject, dict.fromkeys(bones.tolist())))
            return np.stack(list(hands.map(self._photograph, bones.tolist(), seeds)))

    def some(self, bones: NDArray[np.int64], views: int) -> Pictures:
        """(n, views, 2, rows, columns) of (n,) bones, the same ones every time."""
        drawn = np.random.default_rng([self._settings.seed, 2])
        shown = self.take(np.repeat(bones, views), drawn)
        return shown.reshape(len(bones), views, *shown.shape[1:])

    def sha256(self) -> str:
        """Of all that the pictures depend on."""
        keys = [part_key(self._bones[part.bone], part) for part in self._parts]
        return hashlib.sha256(" ".join(keys).encode()).hexdigest()

    def _subject(self, index: int) -> SampleBone:
        if index not in self._made:
            part, number = self._numbers[index]
            bone = self._bones[part.bone].sample
            variation = part.variation(number, bone.frame.length_mm, part.draws(number))
            self._made[index] = varied_bone(bone, variation) if number else bone
        return self._made[index]

    def _photograph(self, index: int, seed: int) -> Pictures:
        """(2, rows, columns) at a pose and in a manner of its own."""
        rng = np.random.default_rng(seed)
        kind = self._settings.presets[int(rng.integers(len(self._settings.presets)))]
        pose = random_pose(rng)
        # A variant may be so odd, or so dim, that no film of a clinic could be read.
        shown = read_pair(self._subject(index), pose, self._frame, kind, rng, or_plain=True)
        return to_bytes(shown)
