"""Small bones for tests: femora of cats, scanned coarsely."""

from __future__ import annotations

import numpy as np

from osteoprint.bank.records import BoneRecord
from osteoprint.ct.parametric import sample_bone as sample_parametric
from osteoprint.ct.phantom import volume_from_surface
from osteoprint.frames import Side, anatomical_frame
from osteoprint.study.experiment import StudyBone, study_bone
from osteoprint.xray.standard import StandardFrame

FRAME = StandardFrame.for_length(130.0, 96)


def make_bone(
    index: int,
    *,
    seed: int = 5,
    name: str = "cat",
    voxels: int = 120,
    picture: StandardFrame = FRAME,
) -> StudyBone:
    """A cat's femur, so many voxels long."""
    surface, _ = sample_parametric(np.random.default_rng([seed, index]), kind="femur", size="cat")
    axes = anatomical_frame(surface.vertices, surface.faces, bone="femur", side=Side.RIGHT)
    volume = volume_from_surface(
        surface, voxel_mm=axes.length_mm / voxels, bone_to_world=axes.bone_to_world
    )
    record = BoneRecord(
        id=f"{index:012x}", name=f"{name} {index}", bone="femur", side=Side.RIGHT,
        individual=f"{index}", length_mm=axes.length_mm, watertight=True, warnings=(), source="",
        created="", surface_sha256="", volume_sha256=f"{index}", bone_to_world=axes.bone_to_world,
    )  # fmt: skip
    return study_bone(record, surface, volume, picture)
