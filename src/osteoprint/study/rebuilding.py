"""What shape is it, from the films themselves: every method on the same films of unseen bones."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray

from osteoprint.ct.volume import Volume
from osteoprint.errors import BankError
from osteoprint.frames import Side, View, apply
from osteoprint.reconstruct.bone_model import BoneModel
from osteoprint.reconstruct.learning import BASIS, LEAST_BONES, model_of_group
from osteoprint.reconstruct.reconstruction import Method, Reconstruction, reconstruct
from osteoprint.shape.alignment import align_rigid
from osteoprint.shape.correspondence import Correspondence
from osteoprint.shape.distance import SurfaceDistance, surface_distance
from osteoprint.shape.group import correspond
from osteoprint.shape.ssm import ShapeModel
from osteoprint.shape.surface_index import SurfaceIndex
from osteoprint.study.experiment import Progress, StudyBone, quiet
from osteoprint.study.workers import cores
from osteoprint.xray.camera import Pose, view_camera
from osteoprint.xray.film import write_film
from osteoprint.xray.film_pair import FilmPair, examine_pair
from osteoprint.xray.presets import expose_preset
from osteoprint.xray.protocol import film_geometry

# In the order of tables: ours first.
METHODS: tuple[Method, ...] = ("refined", "statistical", "laplacian", "ffd", "tps", "contour")
# Films lie so far from the standard views, which nobody tells the methods.
_OFF_DEG, _OFF_SHARE = 5.0, 0.018
# Modes of the shape model that a report shows.
SHOWN_MODES = 5
# Half the width of a 90 % interval, in standard deviations.
_NINETY = 1.645


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """One unseen bone by one method.

    Attributes
    ----------
    found : the reconstruction.
    surface : laid onto the truth, mm, in the true bone's anatomical frame.
    distance : between the two.
    held : share of its points whose 90 % interval holds the truth; None without intervals.
    """

    found: Reconstruction
    surface: trimesh.Trimesh
    distance: SurfaceDistance
    held: float | None


@dataclass(frozen=True, eq=False)
class RebuildStudy:
    """All methods on all unseen bones.

    Attributes
    ----------
    preset : how the films were taken.
    names : of the unseen bones.
    methods : in their order.
    rebuilt : per unseen bone, per method.
    shapes : the known bones' shape model.
    """

    preset: str
    names: tuple[str, ...]
    methods: tuple[str, ...]
    rebuilt: list[dict[str, Rebuilt]]
    shapes: ShapeModel

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: means by method, and every bone."""
        bones = [
            {"name": name, "methods": {m: _facts(r) for m, r in found.items()}}
            for name, found in zip(self.names, self.rebuilt, strict=True)
        ]
        return {
            "preset": self.preset,
            "methods": [self._summary(method) for method in self.methods],
            "bones": bones,
            "model": _model_facts(self.shapes),
        }

    def _summary(self, method: str) -> dict[str, Any]:
        each = [_facts(found[method]) for found in self.rebuilt]
        out: dict[str, Any] = {"method": method}
        for key in ("rms_mm", "hausdorff_mm", "rms_relative", "expected_rms_mm", "held"):
            values = [e[key] for e in each if e[key] is not None]
            out[key] = float(np.mean(values)) if values else None
        return out | {"worst_rms_mm": max(e["rms_mm"] for e in each)}


def _model_facts(model: ShapeModel) -> dict[str, Any]:
    """What the page says of a shape model: bones, modes, and each shown mode's share."""
    variance = model.deviations**2
    share = variance / variance.sum()
    return {
        "shapes": model.shapes,
        "modes": len(share),
        "share": [float(v) for v in share[:SHOWN_MODES]],
        "together": float(share[:SHOWN_MODES].sum()),
    }


def _facts(rebuilt: Rebuilt) -> dict[str, Any]:
    distance, doubt = rebuilt.distance, rebuilt.found.doubt
    return {
        "rms_mm": distance.rms_mm,
        "hd95_mm": distance.hd95_mm,
        "hausdorff_mm": distance.hausdorff_mm,
        "rms_relative": distance.rms_relative,
        "expected_rms_mm": None if doubt is None else doubt.expected_rms_mm,
        "feared_rms_mm": None if doubt is None else doubt.feared_rms_mm,
        "held": rebuilt.held,
        "warnings": list(rebuilt.found.warnings),
    }


def rebuild_study(
    known: Sequence[StudyBone],
    unseen: Sequence[StudyBone],
    methods: Sequence[Method],
    *,
    preset: str = "ideal",
    seed: int = 0,
    progress: Progress = quiet,
) -> RebuildStudy:
    """Learn the known bones' shapes, and rebuild every unseen bone from one pair of films.

    Parameters
    ----------
    known, unseen : of one kind; nobody's bones on both sides.
    methods : which.
    preset : how films are taken, see :mod:`osteoprint.xray.presets`.
    seed : of the films.
    progress : called with (step, done, of how many).

    Raises BankError for fewer known individuals than a model needs.
    """
    model = model_of(known, progress)
    rebuilt = []
    for index, bone in enumerate(unseen):
        rng = np.random.default_rng([seed, 9, index])
        pair = film_pair(bone, preset, rng)
        found: dict[str, Rebuilt] = {}
        for method in methods:
            made = reconstruct(model, [pair.ap, pair.ml], method)
            found[method] = judged(made, bone.surface)
        rebuilt.append(found)
        progress("Rebuilding unseen bones", index + 1, len(unseen))
    names = tuple(bone.record.name for bone in unseen)
    return RebuildStudy(preset, names, tuple(methods), rebuilt, model.shape)


def model_of(known: Sequence[StudyBone], progress: Progress = quiet) -> BoneModel:
    """The bone model of some bones."""
    if len({b.record.individual for b in known}) < LEAST_BONES:
        raise BankError(
            "the bank", "holds too few individuals to learn shapes from",
            f"ingest bones of at least {LEAST_BONES} known ones",
        )  # fmt: skip
    sides = [bone.sample.side for bone in known]
    side = max(Side, key=sides.count)
    group = correspond(
        [bone.surface for bone in known],
        mirrored=[s is not side for s in sides],
        sources=[bone.record.name for bone in known],
        bone=known[0].record.bone, side=side, basis=BASIS, workers=cores(),
        progress=lambda done, total: progress("Learning shapes", done, total),
    )  # fmt: skip
    return model_of_group(
        group,
        "the bank",
        people=[bone.record.individual for bone in known],
        members=[bone.record.id for bone in known],
        scans={k: partial(_scan, bone) for k, bone in enumerate(known)},
        bone=known[0].record.bone,
        side=side,
    )


def _scan(bone: StudyBone, member: Correspondence) -> tuple[Volume, NDArray[np.float64]]:
    """A bone's scan, and where its registered vertices lie in the scan's world, mm."""
    return bone.sample.traced.scan, apply(bone.sample.frame.bone_to_world, member.vertices)


def film_pair(bone: StudyBone, preset: str, rng: np.random.Generator) -> FilmPair:
    """AP and ML films of a bone, off by a few degrees, written to files and read again."""
    geometry = film_geometry(bone.record.length_mm)
    display = preset not in ("ideal", "paper")
    sample = bone.sample
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for view in (View.AP, View.ML):
            long, in_plane, tilt = (float(v) for v in rng.uniform(-_OFF_DEG, _OFF_DEG, 3))
            right, down = rng.uniform(-_OFF_SHARE, _OFF_SHARE, 2) * bone.record.length_mm
            pose = Pose(long, in_plane, tilt, (float(right), float(down)))
            camera = view_camera(sample.frame.bone_to_world, view, sample.side, geometry, pose)
            taken = expose_preset(sample.traced, camera, preset, rng, view=view, side=sample.side)
            path = Path(folder) / f"{view.value}.png"
            write_film(
                taken, path, full_scale=1.0 if display else None,
                intensity="display" if display else "log",
            )  # fmt: skip
            paths.append(path)
        return examine_pair(paths[0], paths[1])


def judged(found: Reconstruction, truth: trimesh.Trimesh) -> Rebuilt:
    """A reconstruction laid onto the truth and measured."""
    moved = found.surface.copy()
    moved.apply_transform(align_rigid(found.surface, truth))
    held = None
    if found.doubt is not None:
        far = SurfaceIndex.build(truth, "truth").nearest(moved.vertices)[0]
        held = float((far <= _NINETY * found.doubt.deviation_mm).mean())
    return Rebuilt(found, moved, surface_distance(moved, truth), held)
