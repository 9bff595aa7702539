"""The nearest known bone by the surface that is rebuilt from the films."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context

import numpy as np
import trimesh

from identification_scene import (
    KNOWN,
    SEED,
    TURN_DEG,
    Row,
    Scene,
    row,
    save_whole,
    study_bones,
)
from osteoprint.frames import apply
from osteoprint.reconstruct.bone_model import BoneModel
from osteoprint.reconstruct.reconstruction import reconstruct
from osteoprint.shape.alignment import align_rigid
from osteoprint.shape.distance import surface_distance
from reconstruction_scene import CACHE, Bone, corresponding, films, learn, real_femora

# Film pairs of each unseen bone: a surface takes as long as its films.
REBUILT = 6


def rms_to_known(scene: Scene, bones: Sequence[Bone]) -> np.ndarray:
    """(bones, known) mm RMS between the surfaces, left bones mirrored; kept."""
    said = json.dumps([[b.name for b in group] for group in (bones, scene.known)])
    path = CACHE / f"rms-{hashlib.sha256(said.encode()).hexdigest()[:12]}.npy"
    if not path.is_file():
        known = [bone.surface for bone in study_bones(scene.known, 0, scene.frame)]
        save_whole(path, np.array([[_rms(k, _right(b)) for k in known] for b in bones]))
    return np.load(path)


def _right(bone: Bone) -> trimesh.Trimesh:
    """In its anatomical frame; a left one as the right one that it is the mirror image of."""
    local = bone.surface.copy()
    local.vertices = apply(bone.frame.world_to_bone, np.asarray(bone.surface.vertices))
    if bone.mirrored:
        local.vertices = np.asarray(local.vertices) * [1.0, -1.0, 1.0]
        local.invert()
    return local


def _rms(known: trimesh.Trimesh, truth: trimesh.Trimesh) -> float:
    moved = known.copy()
    moved.apply_transform(align_rigid(moved, truth))
    return float(surface_distance(moved, truth).rms_mm)


def rebuilt_rows(scene: Scene, truth: np.ndarray) -> Iterator[Row]:
    """Clinic films of the unseen bones, (unseen, known) mm RMS between the bones as the truth."""
    corresponding("smir24", scene.known, "femur")  # once, before processes need it
    jobs = [(index, number) for index in range(len(scene.unseen)) for number in range(REBUILT)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        picks = np.array(list(pool.map(_nearest, *zip(*jobs, strict=True))))
    found = truth[np.repeat(np.arange(len(truth)), REBUILT), picks]
    best = np.repeat(truth.min(axis=1), REBUILT)
    better = (np.repeat(truth, REBUILT, axis=0) < found[:, None] - 1e-9).sum(axis=1)
    name = "nearest shape by the rebuilt surface, clinic"
    yield row(f"{name}: bones that would have been better, of {KNOWN}", better.mean(), "bones",
              n=len(jobs), paper=2.6)  # fmt: skip
    yield row(f"{name}: RMS over the best there is", (found / best).mean(), "ratio", n=len(jobs))
    yield row(f"{name}: mean RMS", found.mean(), "mm", n=len(jobs),
              note=f"the best there is: {best.mean():.2f} mm")  # fmt: skip


@lru_cache(maxsize=1)
def _model() -> tuple[BoneModel, list[int]]:
    """Of the known bones, and which of them it was learnt from."""
    known = real_femora("smir_right_femora")[:KNOWN]
    shapes, faces, ok = corresponding("smir24", known, "femur")
    return learn(known, shapes, faces, ok, "femur"), [int(k) for k in np.flatnonzero(ok)]


def _nearest(index: int, number: int) -> int:
    """Which known bone is nearest to the surface rebuilt from a film pair of an unseen one."""
    bone = real_femora("smir_right_femora")[KNOWN + index]
    turn = float(np.random.default_rng([SEED, 15, index, number]).uniform(-TURN_DEG, TURN_DEG))
    pair = films(
        bone, "clinic", int(3e6) + 1000 * index + number, turned_deg=(turn, turn),
        scan_seed=3000 + index,
    )  # fmt: skip
    model, members = _model()
    rebuilt = reconstruct(model, (pair.ap, pair.ml), "refined")
    return members[int(model.nearest_members(rebuilt.vertices)[0][0])]
