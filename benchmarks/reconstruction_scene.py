"""Bones, films of them and models for the reconstruction benchmark; slow things are kept."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import trimesh

from osteoprint.ct.parametric import sample_bone
from osteoprint.ct.phantom import volume_from_surface
from osteoprint.ct.surface import read_surface
from osteoprint.ct.volume import Volume
from osteoprint.frames import AnatomicalFrame, Side, View, anatomical_frame
from osteoprint.reconstruct.bone_model import BoneModel
from osteoprint.shape.correspondence import register
from osteoprint.shape.group import correspond
from osteoprint.xray.camera import Geometry, Pose, view_camera
from osteoprint.xray.film import write_film
from osteoprint.xray.film_pair import FilmPair, examine_pair
from osteoprint.xray.materials import BODY
from osteoprint.xray.presets import expose_preset
from osteoprint.xray.projector import TracedVolume, prepare
from record import ROOT, real_bones

# What was registered once is kept here, beside the results but out of the repository.
CACHE = ROOT / "benchmarks" / ".cache"
# Film: 0.3 mm pixels for a bone of 450 mm; shorter bones are taken with finer detectors.
FILM_MM, USUAL_MM = 0.3, 450.0
SOFT_MM = 50.0
SCANS = 6


@dataclass(frozen=True, eq=False)
class Bone:
    """One bone: its surface in mm, and its anatomical frame."""

    name: str
    person: str
    surface: trimesh.Trimesh
    frame: AnatomicalFrame
    side: Side

    @property
    def mirrored(self) -> bool:
        """Is it of the left side? Models are of the right."""
        return self.side is Side.LEFT


def real_femora(source: str) -> list[Bone]:
    """All femora of a data set, ordered by name."""
    bones = []
    for path in sorted((real_bones() / source).glob("*.ply")):
        left = path.stem.endswith("_L")
        side = Side.LEFT if left else Side.RIGHT
        person = path.stem.rsplit("_", 1)[0]
        bones.append(_bone(path.stem, person, read_surface(path), "femur", side))
    return bones


def phantoms(kind: str, size: str, count: int, seed: int) -> list[Bone]:
    """Parametric bones of the program's own."""
    bones = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        surface, _ = sample_bone(rng, kind=kind, size=size, side=Side.RIGHT)  # type: ignore[arg-type]
        name = f"{size}-{kind}-{index:02d}"
        bones.append(_bone(name, name, surface, kind, Side.RIGHT))
    return bones


def _bone(name: str, person: str, surface: trimesh.Trimesh, kind: str, side: Side) -> Bone:
    frame = anatomical_frame(
        np.asarray(surface.vertices), np.asarray(surface.faces), bone=kind, side=side
    )
    return Bone(name, person, surface, frame, side)


@lru_cache(maxsize=8)
def scan(bone: Bone, *, soft_mm: float | None, seed: int) -> Volume:
    """A phantom CT of a bone, 0.8 mm voxels on a bone of 450 mm."""
    size = bone.frame.length_mm / USUAL_MM
    return volume_from_surface(
        bone.surface, voxel_mm=0.8 * size,
        soft_tissue_mm=None if soft_mm is None else soft_mm * size,
        bone_to_world=bone.frame.bone_to_world, rng=np.random.default_rng([seed, 77]),
    )  # fmt: skip


@lru_cache(maxsize=2)
def _traced(bone: Bone, soft_mm: float | None, seed: int) -> TracedVolume:
    return prepare(scan(bone, soft_mm=soft_mm, seed=seed), BODY)


def films(
    bone: Bone,
    preset: str,
    seed: int,
    *,
    turned_deg: tuple[float, float] = (0.0, 0.0),
    tilted_deg: tuple[float, float] = (0.0, 0.0),
    shown: tuple[float, float] = (0.0, 1.0),
    keep: Path | None = None,
    scan_seed: int | None = None,
) -> FilmPair:
    """AP and ML films of a bone, written to files and read again.

    Each film is off by up to 5 degrees about each axis without telling, and by up to 8 mm.

    Parameters
    ----------
    bone, preset : what, and how; "clinic" has 50 mm of soft tissue around a bone of 450 mm.
    seed : of everything drawn.
    turned_deg, tilted_deg : besides, of AP and ML: about the long axis; towards the tube.
    shown : the part of the bone's length that is on the films, 0 proximal, 1 distal.
    keep : a folder for the files; None: they are not kept.
    scan_seed : of what is inside the bone and of the limb around it; like ``seed`` when left out.
    """
    soft = None if preset == "ideal" else SOFT_MM
    inside = seed if scan_seed is None else scan_seed
    traced = _traced(bone, soft, inside)
    size = bone.frame.length_mm / USUAL_MM
    pixel = FILM_MM * min(size, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for index, view in enumerate((View.AP, View.ML)):
            rng = np.random.default_rng([seed, index])
            pose = Pose(
                rng.uniform(-5, 5) + turned_deg[index],
                rng.uniform(-5, 5),
                rng.uniform(-5, 5) + tilted_deg[index],
                tuple(rng.uniform(-8, 8, 2) * size),  # type: ignore[arg-type]
            )
            rows = int(1.18 * bone.frame.length_mm * 1.15 / pixel)
            low, high = shown
            part = rows if shown == (0.0, 1.0) else int(rows * (high - low))
            geometry = Geometry(part, int(0.42 * rows), (pixel, pixel), 1150.0, 1000.0)
            if part < rows:
                # The middle of what is shown comes to the middle of the film.
                away = ((low + high) / 2 - 0.5) * bone.frame.length_mm
                pose = Pose(
                    pose.long_deg, pose.in_plane_deg, pose.tilt_deg,
                    (pose.shift_mm[0], pose.shift_mm[1] - away),
                )  # fmt: skip
            camera = view_camera(bone.frame.bone_to_world, view, bone.side, geometry, pose)
            radiograph = expose_preset(
                traced, camera, preset, np.random.default_rng([seed, 5, index]),
                view=view, side=bone.side,
            )  # fmt: skip
            path = (keep or Path(folder)) / f"{view.value}.png"
            display = preset != "ideal"
            write_film(
                radiograph, path, full_scale=1.0 if display else None,
                intensity="display" if display else "log",
            )  # fmt: skip
            paths.append(path)
        return examine_pair(paths[0], paths[1])


def corresponding(
    key: str, bones: Sequence[Bone], kind: str, *, template_of: Sequence[Bone] | None = None
) -> tuple[np.ndarray, np.ndarray, list[bool]]:
    """(s, n, 3) the same points on bones, as they lie; the faces; and which could be registered.

    With ``template_of`` the template comes from other bones, so that nothing of these is in it.
    """
    told = [key, kind, *(b.name for b in bones), *(b.name for b in template_of or ())]
    path = CACHE / f"{key}-{hashlib.sha256(' '.join(told).encode()).hexdigest()[:12]}.npz"
    if path.is_file():
        kept = np.load(path)
        return kept["shapes"], kept["faces"], [bool(ok) for ok in kept["ok"]]
    basis = bones if template_of is None else template_of
    group = correspond(
        [b.surface for b in basis], mirrored=[b.mirrored for b in basis],
        sources=[b.name for b in basis], bone=kind, side=Side.RIGHT, workers=2,
    )  # fmt: skip
    members = list(group.members)
    if template_of is not None:
        members = [
            register(group.template, b.surface, mirrored=b.mirrored, source=b.name) for b in bones
        ]
    shapes, ok = np.stack([m.vertices for m in members]), [m.ok for m in members]
    CACHE.mkdir(exist_ok=True)
    np.savez(path, shapes=shapes, faces=group.template.faces, ok=ok)
    return shapes, group.template.faces, ok


def learn(
    bones: Sequence[Bone], shapes: np.ndarray, faces: np.ndarray, ok: Sequence[bool], kind: str
) -> BoneModel:
    """The model of some bones, with phantom scans of a few."""
    good = [k for k, fine in enumerate(ok) if fine]
    picks = np.unique(np.linspace(0, len(good) - 1, SCANS).astype(int))
    scans = [
        (scan(bones[good[p]], soft_mm=None, seed=1000 + good[p]), shapes[good[p]]) for p in picks
    ]
    own_side = np.stack(
        [shapes[k] * ([-1.0, 1.0, 1.0] if bones[k].mirrored else [1.0, 1.0, 1.0]) for k in good]
    )
    return BoneModel.build(
        own_side, faces, scans, bone=kind, side=Side.RIGHT, people=[bones[k].person for k in good]
    )
