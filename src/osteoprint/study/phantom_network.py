"""A network for banks of bones of any size, trained on bones that the program makes.

It has never seen a real bone. What it has to learn is to tell long bones apart whatever kind
they are of: femora and tibiae, of people and cats, each changed in many ways. A bank holds one
kind of bone, photographed at one scale, so bones of two kinds are never compared.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import trimesh
from numpy.typing import NDArray

from osteoprint.bank.records import BoneRecord
from osteoprint.ct.parametric import sample_bone as sample_parametric
from osteoprint.ct.phantom import volume_from_surface
from osteoprint.fingerprint.model import Model
from osteoprint.fingerprint.settings import DEFAULT_NETWORK, TrainingSettings
from osteoprint.fingerprint.training import train
from osteoprint.frames import Side, anatomical_frame, apply
from osteoprint.study.experiment import Progress, StudyBone, quiet, study_bone
from osteoprint.study.training_films import make_training_films
from osteoprint.xray.standard import StandardFrame

KINDS: tuple[tuple[Literal["femur", "tibia"], Literal["human", "cat"]], ...] = (
    ("femur", "human"), ("tibia", "human"), ("femur", "cat"), ("tibia", "cat"),
)  # fmt: skip
PHANTOMS = 24
# A bank's scale has so much room beyond its longest bone, for those to come.
ROOM = 1.07
# All kinds are brought to this size: to a standard picture size is nothing but a scale.
_LONGEST_MM = 500.0
# mm: what a standard picture at this size shows anyway.
_VOXEL_MM = 2.0

PHANTOM_TRAINING = TrainingSettings(
    # Made before there was a part for shapes, with a coarser grid, to look once, of films drawn
    # at random.
    network=replace(DEFAULT_NETWORK, shape_share=0.0, grid=(6, 2), looks=1),
    presets=("ideal", "ideal", "clinic", "clinic", "clinic"),
    variants_per_bone=24,
    drawn=0.0,  # it was made before any variant was drawn
    poses_per_variant=6,
    bones_per_batch=24,
    views_per_bone=3,
    positive_candidates=1,
    steps=2000,
    mirror=True,
    accelerator="auto",
)


def train_on_phantoms(
    settings: TrainingSettings = PHANTOM_TRAINING,
    progress: Progress = quiet,
    *,
    phantoms: int = PHANTOMS,
    checkpoint: Path | None = None,
    films_folder: Path | None = None,
) -> Model:
    """Train a network on phantoms alone; its scale is that of the bank it will be used with.

    Parameters
    ----------
    settings : of the films and the training.
    phantoms : how many of each of the ``KINDS``, before they are changed.
    checkpoint, films_folder : keep what is done, so that it can be gone on with; they stay.
    """
    frame = StandardFrame.for_length(ROOM * _LONGEST_MM)
    pictures, blocks, kinds, names = [], [], [], []
    for kind, (bone, size) in enumerate(KINDS):
        made = _phantoms(bone, size, phantoms, frame, settings.seed, progress)
        films = make_training_films(made, frame, settings, progress, folder=films_folder)
        pictures.append(films.pictures)
        blocks.append(films.rms_mm)
        kinds += [kind] * len(films.bones)
        names += [b.record.name for b in made]
    model = train(
        np.concatenate(pictures),
        names,
        frame,
        settings,
        rms_mm=_beside_each_other(blocks),
        kinds=np.array(kinds),
        checkpoint=checkpoint,
        progress=lambda share, loss: progress(f"Training (loss {loss:.3f})", share, 1.0),
    )
    progress("Training", 1, 1)
    model.card.frame = StandardFrame(frame.rows, frame.columns, frame.spacing_mm / _LONGEST_MM)
    model.card.scale = "of the bank"
    return model


def _phantoms(
    kind: Literal["femur", "tibia"],
    size: Literal["human", "cat"],
    count: int,
    frame: StandardFrame,
    seed: int,
    progress: Progress,
) -> list[StudyBone]:
    """Parametric bones, the longest of them as long as all kinds' longest."""
    surfaces = []
    for index in range(count):
        # Far from the seeds that a demo's phantoms are made of.
        rng = np.random.default_rng([seed, 7919, KINDS.index((kind, size)), index])
        surface, _ = sample_parametric(rng, kind=kind, size=size, side=Side.RIGHT)
        axes = anatomical_frame(surface.vertices, surface.faces, bone=kind, side=Side.RIGHT)
        surface.vertices = apply(axes.world_to_bone, np.asarray(surface.vertices))
        surfaces.append(surface)
        progress(f"Making phantoms ({size} {kind})", index + 1, count)
    longest = max(float(np.ptp(s.vertices[:, 0])) for s in surfaces)
    bones = []
    for index, surface in enumerate(surfaces):
        grown = trimesh.Trimesh(
            np.asarray(surface.vertices) * _LONGEST_MM / longest, surface.faces, process=False
        )
        bones.append(_study_bone(f"{size} {kind} {index}", kind, grown, frame, seed + index))
    return bones


def _study_bone(
    name: str,
    kind: Literal["femur", "tibia"],
    surface: trimesh.Trimesh,
    frame: StandardFrame,
    seed: int,
) -> StudyBone:
    axes = anatomical_frame(surface.vertices, surface.faces, bone=kind, side=Side.RIGHT)
    volume = volume_from_surface(
        surface,
        voxel_mm=_VOXEL_MM,
        bone_to_world=axes.bone_to_world,
        rng=np.random.default_rng([seed, 5]),
    )
    record = BoneRecord(
        id=name, name=name, bone=kind, side=Side.RIGHT, individual=name,
        length_mm=axes.length_mm, watertight=True, warnings=(), source="parametric", created="",
        surface_sha256="", volume_sha256=name, bone_to_world=axes.bone_to_world,
    )  # fmt: skip
    return study_bone(record, surface, volume, frame)


def _beside_each_other(blocks: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """One matrix of all kinds; infinity between bones of two."""
    count = sum(len(block) for block in blocks)
    out, at = np.full((count, count), np.inf), 0
    for block in blocks:
        out[at : at + len(block), at : at + len(block)] = block
        at += len(block)
    return out
