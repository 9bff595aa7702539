"""What every study starts from: bones of a bank, split by individual, rendered, learnt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray

from osteoprint.bank.store import Bank, BoneRecord
from osteoprint.ct.reading import read_volumes
from osteoprint.errors import BankError
from osteoprint.fingerprint.encoder import Model
from osteoprint.fingerprint.samples import (
    PairPose,
    SampleBone,
    from_bytes,
    random_pose,
    render_set,
    sample_bone,
)
from osteoprint.fingerprint.training import TrainingSettings, train
from osteoprint.frames import AnatomicalFrame, Side, apply, invert_rigid
from osteoprint.shape.alignment import align_rigid
from osteoprint.shape.distance import surface_distance
from osteoprint.xray.standard import StandardFrame

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
    seed : poses and everything else that is drawn.
    """

    unseen: tuple[str, ...] = ()
    training: TrainingSettings = field(default_factory=TrainingSettings)
    probes: int = 16
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Experiment:
    """Known and unseen bones with a network trained on the known ones."""

    known: list[StudyBone]
    unseen: list[StudyBone]
    known_rms_mm: NDArray[np.float64]
    frame: StandardFrame
    model: Model

    @property
    def gallery_names(self) -> list[str]:
        """Names of the known bones, in the order of ``known_rms_mm``."""
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
    side = Side(record.side) if record.side else Side.RIGHT
    axes = AnatomicalFrame(np.asarray(record.bone_to_world), side, record.length_mm)
    volume = read_volumes(bank.volume_path(record)).volume
    surface = bank.surface(record)
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


def rms_matrix(bones: Sequence[StudyBone], progress: Progress = quiet) -> NDArray[np.float64]:
    """(n, n) symmetric surface RMS in mm after rigid alignment, zero on the diagonal."""
    count = len(bones)
    matrix = np.zeros((count, count))
    pairs = [(i, j) for i in range(count) for j in range(i)]
    for done, (i, j) in enumerate(pairs):
        matrix[i, j] = matrix[j, i] = aligned_rms_mm(bones[i].surface, bones[j].surface)
        progress("Comparing known shapes", done + 1, len(pairs))
    return matrix


def aligned_rms_mm(moving: trimesh.Trimesh, fixed: trimesh.Trimesh) -> float:
    """Symmetric surface RMS in mm after the best rigid alignment."""
    moved = moving.copy()
    moved.apply_transform(align_rigid(moving, fixed))
    return surface_distance(moved, fixed).rms_mm


def prepare_experiment(
    bones: Sequence[StudyBone], settings: StudySettings, progress: Progress = quiet
) -> Experiment:
    """Split the bones, render the known ones, train the network on them alone."""
    known, unseen = split(bones, settings.unseen)
    frame = StandardFrame.for_length(max(b.record.length_mm for b in known))
    rms = rms_matrix(known, progress)
    model = train_on(known, rms, frame, settings.training, progress)
    return Experiment(known, unseen, rms, frame, model)


def train_on(
    bones: Sequence[StudyBone],
    rms_mm: NDArray[np.float64] | None,
    frame: StandardFrame,
    settings: TrainingSettings,
    progress: Progress = quiet,
    *,
    checkpoint: Path | None = None,
) -> Model:
    """Render random pairs of every bone and train the network on them."""
    rng = np.random.default_rng([settings.seed, 1])
    poses = [[random_pose(rng) for _ in range(settings.poses_per_bone)] for _ in bones]
    pictures = render_set(
        [b.sample for b in bones], poses, frame, lambda i, n: progress("Taking X-rays", i, n)
    )
    return train(
        pictures,
        [b.record.id for b in bones],
        frame,
        settings,
        rms_mm=rms_mm,
        checkpoint=checkpoint,
        progress=lambda share, loss: progress(f"Training (loss {loss:.3f})", share, 1.0),
    )


def embed_views(
    model: Model,
    bones: Sequence[StudyBone],
    poses: Sequence[Sequence[PairPose]],
    what: str,
    progress: Progress = quiet,
) -> NDArray[np.float32]:
    """(bones, poses, d) fingerprints of every bone at each of its poses."""
    pictures = render_set(
        [b.sample for b in bones], poses, model.card.frame, lambda i, n: progress(what, i, n)
    )
    flat = from_bytes(pictures.reshape(-1, *pictures.shape[2:]))
    return model.embed(flat).reshape(len(bones), len(poses[0]), -1)
