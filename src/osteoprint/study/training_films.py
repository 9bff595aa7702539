"""The films a network is trained on: of every known bone and its variants, as films are read."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from osteoprint import __version__
from osteoprint.ct.variation import Variation
from osteoprint.fingerprint.clinic_films import read_pair
from osteoprint.fingerprint.samples import (
    SampleBone,
    random_pose,
    to_bytes,
    varied_bone,
)
from osteoprint.fingerprint.settings import TrainingSettings
from osteoprint.shape.deformation import DeformationModel
from osteoprint.shape.resemblance import Resemblance
from osteoprint.study.workers import cores, open_workers
from osteoprint.xray.standard import StandardFrame

if TYPE_CHECKING:
    from osteoprint.study.experiment import Progress, StudyBone

# Variants stay within so much of the lengths that the known bones have.
_SHORTER, _LONGER = 0.93, 1.07
# Bones and variants altogether, where settings do not say how many of each.
_ALTOGETHER = 720
# The films' part of the time, where that is limited.
_SHARE = 0.4
# Variants a task makes.
_CHUNK = 6
# Fewer film pairs are made before other processes would have started.
_FEW = 1500


@dataclass(frozen=True, eq=False)
class TrainingFilms:
    """What a network is shown.

    Attributes
    ----------
    pictures : (v, pairs, 2, rows, columns) uint8, see ``samples.to_bytes``.
    rms_mm : (v, v) surface RMS between the bones, real and changed; infinity, see
        :func:`rms_between`.
    bones : (v,) which bone each is made from; the first of each bone is the bone itself.
    """

    pictures: NDArray[np.uint8]
    rms_mm: NDArray[np.float64]
    bones: NDArray[np.int64]

    @property
    def originals(self) -> NDArray[np.int64]:
        """Rows of the bones as they are."""
        return np.flatnonzero(np.r_[True, np.diff(self.bones) > 0])


@dataclass(frozen=True)
class Part:
    """Some variants of one bone, to be made by one task.

    Attributes
    ----------
    bone, first, count : which bone, and which of its variants; 0 is the bone itself.
    limits_mm : between which lengths variants lie.
    frame, presets, pairs : the scale, the manner and the number of the films of each.
    seed : of everything drawn.
    drawn : share of the changed ones that are drawn as the bones of its kind and side differ.
    before : how many changed ones other bones have before it.
    differing, member : how these differ, where that is known, and which of them it is.
    """

    bone: int
    first: int
    count: int
    limits_mm: tuple[float, float]
    frame: StandardFrame
    presets: tuple[str, ...]
    pairs: int
    seed: int
    drawn: float = 0.0
    before: int = 0
    differing: DeformationModel | None = None
    member: int = 0

    def draws(self, number: int) -> np.random.Generator:
        """All that is drawn for one variant comes from here."""
        return np.random.default_rng([self.seed, 1, self.bone, number])

    def variation(self, number: int, length_mm: float, rng: np.random.Generator) -> Variation:
        """The bone itself, then changed ones, smoothly and as the known bones differ, in turns."""
        if not number:
            return Variation.none()
        # In turns over all bones: each may have one changed one alone.
        turn = self.before + number
        if int(turn * self.drawn) > int((turn - 1) * self.drawn) and self.differing is not None:
            return self.differing.draw(self.member, rng, self.limits_mm)
        return Variation.draw(length_mm, rng, self.limits_mm)


def frame_for(lengths_mm: Sequence[float]) -> StandardFrame:
    """The scale of the pictures for bones of these lengths: with room for the longest variant."""
    return StandardFrame.for_length(_LONGER * max(lengths_mm))


def lengths_allowed(lengths_mm: Sequence[float]) -> tuple[float, float]:
    """The least and the greatest length in mm of variants of bones of these lengths."""
    return _SHORTER * min(lengths_mm), _LONGER * max(lengths_mm)


def variants_of(settings: TrainingSettings, bones: int) -> int:
    """How many variants of each of so many bones there are, itself included."""
    return settings.variants_per_bone or max(2, math.ceil(_ALTOGETHER / bones))


def affordable(
    bones: Sequence[StudyBone],
    frame: StandardFrame,
    settings: TrainingSettings,
    folder: Path | None = None,
) -> TrainingSettings:
    """The same settings with fewer films, where making them would take too much of the time.

    Without a limit on the time nothing changes. A few films are made to see how long they take;
    what was decided is noted in ``folder``, so that a call that goes on decides alike.
    """
    if settings.minutes is None:
        return settings
    asked = json.loads(json.dumps([asdict(settings), [b.record.id for b in bones]]))
    note = None if folder is None else folder / "settled.json"
    if note is not None and note.is_file():
        said = json.loads(note.read_text())
        if said["asked"] == asked:
            variants, pairs = said["settled"]
            return replace(settings, variants_per_bone=variants, poses_per_variant=pairs)
    numbers = _numbers(bones, frame, settings, settings.minutes)
    if note is not None:
        note.parent.mkdir(parents=True, exist_ok=True)
        partial = note.with_suffix(".partial")
        partial.write_text(json.dumps({"asked": asked, "settled": numbers}))
        partial.replace(note)
    return replace(settings, variants_per_bone=numbers[0], poses_per_variant=numbers[1])


def _numbers(
    bones: Sequence[StudyBone], frame: StandardFrame, settings: TrainingSettings, minutes: float
) -> tuple[int, int]:
    """How many variants and pairs can be made in a part of so many minutes."""
    variants, pairs = variants_of(settings, len(bones)), settings.poses_per_variant
    sample = bones[0].sample
    tried = _part(bones, frame, replace(settings, poses_per_variant=len(settings.presets)), 0, 0, 1)
    _films_of(sample, tried, 0)  # compiles
    begun = time.perf_counter()
    _films_of(sample, tried, 1)
    each_s = (time.perf_counter() - begun) / tried.pairs
    wanted = len(bones) * variants * pairs
    alone = int(_SHARE * 60 * minutes / each_s)
    together = alone * _processes(wanted)
    # What is few is made by one process.
    possible = together if together > _FEW else alone
    if possible < len(bones) * pairs:
        variants, pairs = 1, max(2, possible // len(bones))
    elif possible < wanted:
        variants = possible // (len(bones) * pairs)
    return variants, pairs


def make_training_films(
    bones: Sequence[StudyBone],
    frame: StandardFrame,
    settings: TrainingSettings,
    progress: Progress,
    *,
    folder: Path | None = None,
) -> TrainingFilms:
    """Photograph every bone and its variants, each pair at a pose and in a manner of its own.

    Parameters
    ----------
    bones : of one kind, with their surfaces.
    frame : the scale of the pictures.
    settings : how many variants and pairs, which presets, the seed.
    folder : what is made is kept there, so that an interrupted call is gone on with; nowhere
        when left out.

    The result does not depend on the number of processes. Raises FilmError where a bone
    cannot be seen on its own plain films.
    """
    parts = parts_of(bones, frame, settings)
    pairs = sum(part.count * part.pairs for part in parts)
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        place.mkdir(parents=True, exist_ok=True)
        files = [place / f"{part_key(bones[part.bone], part)}.npy" for part in parts]
        left = [i for i, file in enumerate(files) if not file.is_file()]
        done = len(parts) - len(left)

        def one_done(_index: int, _result: None) -> None:
            nonlocal done
            done += 1
            progress("Taking X-rays", done, len(parts))

        workers = stack.enter_context(open_workers(_processes(pairs)))
        tasks = [(bones[parts[i].bone].sample, parts[i], str(files[i])) for i in left]
        workers.run(_take_part, tasks, one_done)
        pictures = np.concatenate([np.load(file, allow_pickle=False) for file in files])
    which = np.repeat([p.bone for p in parts], [p.count for p in parts])
    return TrainingFilms(pictures, rms_between(bones, parts), which)


def parts_of(
    bones: Sequence[StudyBone], frame: StandardFrame, settings: TrainingSettings
) -> list[Part]:
    """All that there is to be made, a bone after the other."""
    variants = variants_of(settings, len(bones))
    differing: dict[int, tuple[DeformationModel | None, int]] = {}
    if variants > 1 and settings.drawn:
        for members in _alike(bones):
            model = DeformationModel.of([bones[m].surface for m in members])
            differing |= {bone: (model, member) for member, bone in enumerate(members)}
    parts = (
        _part(bones, frame, settings, bone, first, min(_CHUNK, variants - first))
        for bone in range(len(bones))
        for first in range(0, variants, _CHUNK)
    )
    return [
        replace(
            part,
            before=part.bone * (variants - 1),
            differing=differing[part.bone][0],
            member=differing[part.bone][1],
        )
        if part.bone in differing
        else part
        for part in parts
    ]


def _alike(bones: Sequence[StudyBone]) -> list[list[int]]:
    """Numbers of the bones of each kind and side."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, bone in enumerate(bones):
        groups.setdefault((bone.record.bone, bone.sample.side), []).append(index)
    return list(groups.values())


def _part(
    bones: Sequence[StudyBone],
    frame: StandardFrame,
    settings: TrainingSettings,
    bone: int,
    first: int,
    count: int,
) -> Part:
    limits = lengths_allowed(
        [b.record.length_mm for b in bones if b.record.bone == bones[bone].record.bone]
    )
    pairs = settings.poses_per_variant
    return Part(
        bone, first, count, limits, frame, settings.presets, pairs, settings.seed, settings.drawn
    )


def _processes(pairs: int) -> int:
    return cores() if pairs > _FEW else 1


def _take_part(bone: SampleBone, part: Part, path: str) -> None:
    """Write (count, pairs, 2, rows, columns) uint8 pictures; the file appears whole."""
    numbers = range(part.first, part.first + part.count)
    out = np.stack([_films_of(bone, part, number) for number in numbers])
    target = Path(path)
    partial = target.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, out)
    partial.replace(target)


def _films_of(bone: SampleBone, part: Part, number: int) -> NDArray[np.uint8]:
    """(pairs, 2, rows, columns) of one variant."""
    rng = part.draws(number)
    variation = part.variation(number, bone.frame.length_mm, rng)
    subject = varied_bone(bone, variation) if number else bone
    out = np.zeros((part.pairs, 2, part.frame.rows, part.frame.columns), np.uint8)
    for pair in range(part.pairs):
        pose, kind = random_pose(rng), part.presets[pair % len(part.presets)]
        # A variant may be so odd, or so dim, that no film of a clinic could be read.
        out[pair] = to_bytes(read_pair(subject, pose, part.frame, kind, rng, or_plain=True))
    return out


def rms_between(bones: Sequence[StudyBone], parts: Sequence[Part]) -> NDArray[np.float64]:
    """(v, v) mm between all variants of all parts, in their order.

    Infinity between bones of two kinds or sides: points of one are not found on the other.
    """
    which, changes = [], []
    for part in parts:
        length = bones[part.bone].sample.frame.length_mm
        for number in range(part.first, part.first + part.count):
            which.append(part.bone)
            changes.append(part.variation(number, length, part.draws(number)))
    out = np.full((len(which), len(which)), np.inf)
    for members in _alike(bones):
        rows = np.flatnonzero(np.isin(which, members))
        resemblance = Resemblance.of([bones[m].surface for m in members])
        of = np.searchsorted(members, np.array(which)[rows])
        out[np.ix_(rows, rows)] = resemblance.rms_mm(of, [changes[row] for row in rows])
    return out


def part_key(bone: StudyBone, part: Part) -> str:
    """A name for what a part makes: all that it depends on."""
    record = bone.record
    scan = (record.volume_sha256, record.bone_to_world.tolist(), record.side, record.length_mm)
    differing = part.differing and part.differing.sha256
    own = asdict(replace(part, differing=None)) | {"differing": differing}
    said = json.dumps([own, scan, __version__], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:20]
