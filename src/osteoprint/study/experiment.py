"""What every study starts from: bones of a bank, split by individual, rendered, learnt."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray

from osteoprint.bank.store import Bank, BoneRecord
from osteoprint.ct.reading import read_scan
from osteoprint.ct.volume import Volume
from osteoprint.errors import BankError
from osteoprint.fingerprint.batches import PictureSource, Stored
from osteoprint.fingerprint.model import Model
from osteoprint.fingerprint.samples import (
    PairPose,
    SampleBone,
    from_bytes,
    render_set,
    sample_bone,
)
from osteoprint.fingerprint.settings import TrainingSettings
from osteoprint.fingerprint.training import train
from osteoprint.frames import AnatomicalFrame, Side, apply, invert_rigid
from osteoprint.reconstruct.reconstruction import Method
from osteoprint.study.fresh_films import FreshFilms
from osteoprint.study.shard_films import shard_films
from osteoprint.study.training_films import (
    TrainingFilms,
    affordable,
    frame_for,
    make_training_films,
    parts_of,
    rms_between,
)
from osteoprint.xray.standard import StandardFrame

# Films of each bone, to see which other bone is nearest.
_LOOKED_AT = 10
# What a study calls while it works: (what it does, done, of how many).
Progress = Callable[[str, float, float], None]


@dataclass(frozen=True, eq=False)
class StudyBone:
    """A bone of the bank with its surface (anatomical frame, mm) and its scan, ready to render."""

    record: BoneRecord
    surface: trimesh.Trimesh
    sample: SampleBone


@dataclass(frozen=True)
class StudySettings:
    """What a study does besides its bones.

    Attributes
    ----------
    unseen : names or ids of the bones kept from the network; when empty, the last sixth
        of the individuals in the order of their names.
    training : the network and its training.
    probes : how many AP + ML pairs of every bone are asked for.
    methods : by which the unseen bones' surfaces are rebuilt from films, if any.
    preset : how those films are taken, see :mod:`osteoprint.xray.presets`.
    seed : poses and everything else that is drawn.
    """

    unseen: tuple[str, ...] = ()
    training: TrainingSettings = field(default_factory=TrainingSettings)
    probes: int = 16
    methods: tuple[Method, ...] = ()
    preset: str = "ideal"
    seed: int = 0


@dataclass(frozen=True, eq=False)
class FilmSet:
    """Film pairs of some bones, and what the network made of them.

    Attributes
    ----------
    poses : of each bone, how each of its pairs was taken.
    pictures : (bones, pairs, 2, rows, columns) uint8, standard pictures, AP then ML.
    fingerprints : (bones, pairs, d) float32, unit length.
    """

    poses: list[list[PairPose]]
    pictures: NDArray[np.uint8]
    fingerprints: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Experiment:
    """Known and unseen bones with a network trained on the known ones."""

    known: list[StudyBone]
    unseen: list[StudyBone]
    frame: StandardFrame
    model: Model

    @property
    def gallery_names(self) -> list[str]:
        """Names of the known bones, in their order."""
        return [b.record.name for b in self.known]


def quiet(what: str, done: float, total: float) -> None:
    """A progress that says nothing."""


def load_bones(bank: Bank, progress: Progress = quiet) -> list[StudyBone]:
    """All bones of a bank, ordered by name, ready to render at one scale."""
    records = sorted(bank.bones(), key=lambda r: r.name)
    if not records:
        raise BankError(bank.folder, "holds no bones", "ingest some first")
    frame = StandardFrame.for_length(max(r.length_mm for r in records))
    bones = []
    for index, record in enumerate(records):
        bones.append(load_bone(bank, record, frame))
        progress("Reading bones", index + 1, len(records))
    return bones


def load_bone(bank: Bank, record: BoneRecord, frame: StandardFrame) -> StudyBone:
    """One bone of a bank, ready to render at the scale of ``frame``."""
    volume = read_scan(bank.volume_path(record)).volume
    return study_bone(record, bank.surface(record), volume, frame)


def study_bone(
    record: BoneRecord, surface: trimesh.Trimesh, volume: Volume, frame: StandardFrame
) -> StudyBone:
    """A bone whose surface and scan are at hand, both in the world (LPS, mm)."""
    side = Side(record.side) if record.side else Side.RIGHT
    axes = AnatomicalFrame(np.asarray(record.bone_to_world), side, record.length_mm)
    local = trimesh.Trimesh(
        apply(invert_rigid(axes.bone_to_world), surface.vertices), surface.faces, process=False
    )
    return StudyBone(record, local, sample_bone(record.id, volume, axes, side, frame))


def split(
    bones: Sequence[StudyBone], unseen: tuple[str, ...]
) -> tuple[list[StudyBone], list[StudyBone]]:
    """Known and unseen bones; nobody's bones on both sides.

    Raises BankError for a name that is not there, or where one side stays empty.
    """
    if unseen:
        missing = [n for n in unseen if n not in {x for b in bones for x in _names(b)}]
        if missing:
            raise BankError(missing[0], "is not in the bank", "see 'osteoprint bank list'")
        people = {b.record.individual for b in bones if set(_names(b)) & set(unseen)}
    else:
        everybody = sorted({b.record.individual for b in bones})
        people = set(everybody[-max(1, round(len(everybody) / 6)) :])
    known = [b for b in bones if b.record.individual not in people]
    held = [b for b in bones if b.record.individual in people]
    if len({b.record.individual for b in known}) < 2 or not held:
        raise BankError(
            "the bank", "holds too few individuals to split", "ingest at least three individuals"
        )
    return known, held


def _names(bone: StudyBone) -> tuple[str, str]:
    return bone.record.name, bone.record.id


def prepare_experiment(
    bones: Sequence[StudyBone], settings: StudySettings, progress: Progress = quiet
) -> Experiment:
    """Split the bones, render the known ones, train the network on them alone."""
    known, unseen = split(bones, settings.unseen)
    frame = frame_for([b.record.length_mm for b in known])
    return Experiment(known, unseen, frame, train_on(known, frame, settings.training, progress))


def train_on(
    bones: Sequence[StudyBone],
    frame: StandardFrame,
    settings: TrainingSettings,
    progress: Progress = quiet,
    *,
    start: Model | None = None,
    checkpoint: Path | None = None,
    films_folder: Path | None = None,
    shards: Path | None = None,
    log: Path | None = None,
) -> Model:
    """Photograph every bone and its variants, and train the network on them.

    ``start`` is the model to begin with, if not with random weights. ``checkpoint`` and
    ``films_folder`` keep what is done, so that it can be gone on with; they stay until whoever
    named them has kept the model. ``shards`` are the pictures of ``render --shards``: shown
    instead, without variants. ``log`` is a folder for TensorBoard. The card also says how far
    nearest matches are off: every bone against the nearest other.
    """
    if len(bones) < 2:
        raise BankError("the bank", "holds fewer than two bones", "ingest more to train on")
    begun = time.monotonic() - _spent(films_folder)
    films: FreshFilms | TrainingFilms
    source: PictureSource
    if settings.fresh:
        settings = replace(settings, positive_candidates=1)  # no film is shown twice
        films = source = FreshFilms(bones, frame, settings)
    elif shards is not None:
        pictures = shard_films(shards, bones, frame, progress)
        settings = replace(
            settings, variants_per_bone=1, poses_per_variant=pictures.shape[1], presets=(),
            # Of hundreds of films a bone, what is remembered of each is long out of date.
            positive_candidates=1,
        )  # fmt: skip
        apart = rms_between(bones, parts_of(bones, frame, settings))
        films = TrainingFilms(pictures, apart, np.arange(len(bones)))
        source = Stored(pictures)
    else:
        settings = affordable(bones, frame, settings, films_folder)
        made = make_training_films(bones, frame, settings, progress, folder=films_folder)
        films, source = made, Stored(made.pictures)
    if settings.minutes is not None:
        _spent(films_folder, time.monotonic() - begun)
        left = settings.minutes - (time.monotonic() - begun) / 60
        settings = replace(settings, minutes=max(left, 0.2 * settings.minutes))
    model = train(
        source,
        [b.record.id for b in bones],
        frame,
        settings,
        rms_mm=films.rms_mm,
        start=start,
        checkpoint=checkpoint,
        log=log,
        progress=lambda share, loss: progress(f"Training (loss {loss:.3f})", share, 1.0),
    )
    progress("Training", 1, 1)
    own = films.originals
    people = np.array([b.record.individual for b in bones])
    figures = _nearest_other(
        model, source.some(own, _LOOKED_AT), films.rms_mm[np.ix_(own, own)], people
    )
    model.card.figures.update(figures)
    return model


def _spent(folder: Path | None, seconds: float | None = None) -> float:
    """The seconds that films took, kept beside them: a call that goes on has no less to do."""
    if folder is None:
        return 0.0
    note = folder / "spent.json"
    if seconds is None:
        return float(json.loads(note.read_text())) if note.is_file() else 0.0
    folder.mkdir(parents=True, exist_ok=True)
    partial = note.with_suffix(".partial")
    partial.write_text(json.dumps(seconds))
    partial.replace(note)
    return seconds


def _nearest_other(
    model: Model,
    pictures: NDArray[np.uint8],
    rms_mm: NDArray[np.float64],
    people: NDArray[np.str_],
) -> dict[str, float]:
    """Surface RMS between each bone and the other individual's its pictures are nearest to.

    Only bones between which it is known are compared.
    """
    flat = from_bytes(pictures.reshape(-1, *pictures.shape[2:]))
    embedded = model.embed(flat).reshape(*pictures.shape[:2], -1)
    nearest = model.of_shape(embedded) @ model.shape_of_views(embedded).T
    index = np.arange(len(pictures))
    same_person = people[:, None] == people[None, :]
    comparable = ~same_person & np.isfinite(rms_mm)
    asked = np.flatnonzero(comparable.any(axis=1))
    if not len(asked):
        return {}
    nearest = np.where(comparable[:, None, :], nearest, -np.inf)
    found = rms_mm[index[:, None], nearest.argmax(axis=2)][asked]
    median, p95 = np.percentile(found, [50, 95])
    return {"nearest median mm": float(median), "nearest p95 mm": float(p95)}


def take_films(
    model: Model,
    bones: Sequence[StudyBone],
    poses: list[list[PairPose]],
    what: str,
    progress: Progress = quiet,
) -> FilmSet:
    """Photograph every bone at each of its poses and take the fingerprints."""
    pictures = render_set(
        [b.sample for b in bones], poses, model.card.frame, lambda i, n: progress(what, i, n)
    )
    flat = from_bytes(pictures.reshape(-1, *pictures.shape[2:]))
    return FilmSet(poses, pictures, model.embed(flat).reshape(len(bones), len(poses[0]), -1))
