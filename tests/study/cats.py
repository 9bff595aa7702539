"""Small bones for tests: femora of cats, scanned coarsely."""

from __future__ import annotations

import numpy as np
import trimesh

from osteoprint.bank.records import BoneRecord
from osteoprint.ct.parametric import sample_bone as sample_parametric
from osteoprint.ct.phantom import volume_from_surface
from osteoprint.fingerprint.samples import sample_bone
from osteoprint.frames import Side, anatomical_frame, apply
from osteoprint.study.experiment import StudyBone
from osteoprint.xray.standard import StandardFrame

FRAME = StandardFrame.for_length(130.0, 96)


def make_bone(index: int) -> StudyBone:
    """A cat's femur."""
    surface, _ = sample_parametric(np.random.default_rng([5, index]), kind="femur", size="cat")
    axes = anatomical_frame(surface.vertices, surface.faces, bone="femur", side=Side.RIGHT)
    volume = volume_from_surface(
        surface, voxel_mm=axes.length_mm / 120, bone_to_world=axes.bone_to_world
    )
    record = BoneRecord(
        id=f"{index:012x}", name=f"cat {index}", bone="femur", side=Side.RIGHT,
        individual=f"{index}", length_mm=axes.length_mm, watertight=True, warnings=(), source="",
        created="", surface_sha256="", volume_sha256=f"{index}", bone_to_world=axes.bone_to_world,
    )  # fmt: skip
    local = trimesh.Trimesh(
        apply(axes.world_to_bone, np.array(surface.vertices)), surface.faces, process=False
    )
    return StudyBone(record, local, sample_bone(record.id, volume, axes, Side.RIGHT, FRAME))
