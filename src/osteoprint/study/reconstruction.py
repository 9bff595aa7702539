"""What shape is it? The nearest known bone for bones never seen, beside the trivial answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray

from osteoprint.shape.alignment import align_rigid
from osteoprint.shape.distance import SurfaceDistance, surface_distance
from osteoprint.shape.mean import mean_shape
from osteoprint.study.experiment import Experiment, Progress, quiet
from osteoprint.study.identification import Views, distances


@dataclass(frozen=True)
class NearestMatch:
    """How near the nearest known bone came to one unseen bone, over all its film pairs.

    Attributes
    ----------
    name : the unseen bone.
    chosen : the known bone that most pairs chose; ``share`` of the pairs did.
    rms_mm, hausdorff_mm : mean over the pairs of the chosen bones' surface distances.
    rms_relative, hausdorff_relative : the same over the bounding-box diagonal.
    better : mean number of known bones that would have been closer.
    same_length_*, best_*, mean_shape_rms_mm, any_rms_mm : the baselines, in the same units.
    """

    name: str
    chosen: str
    share: float
    rms_mm: float
    hausdorff_mm: float
    rms_relative: float
    hausdorff_relative: float
    better: float
    same_length: str
    same_length_rms_mm: float
    same_length_better: int
    best: str
    best_rms_mm: float
    mean_shape_rms_mm: float
    any_rms_mm: float


@dataclass(frozen=True, eq=False)
class NearestStudy:
    """Nearest matches of all unseen bones.

    Attributes
    ----------
    matches : one per unseen bone.
    rms_mm : (unseen, known) surface RMS after rigid alignment.
    mean_surface : the mean shape of the known bones.
    """

    matches: list[NearestMatch]
    rms_mm: NDArray[np.float64]
    mean_surface: trimesh.Trimesh

    def summary(self) -> dict[str, float]:
        """Means over the unseen bones, in words a table can use."""
        keys = (
            "rms_mm", "hausdorff_mm", "rms_relative", "hausdorff_relative", "better",
            "same_length_rms_mm", "same_length_better", "best_rms_mm", "mean_shape_rms_mm",
            "any_rms_mm",
        )  # fmt: skip
        means = {k: float(np.mean([getattr(m, k) for m in self.matches])) for k in keys}
        return means | {"rms_over_best": means["rms_mm"] / means["best_rms_mm"]}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"summary": self.summary(), "bones": [asdict(m) for m in self.matches]}


def nearest_study(
    experiment: Experiment, views: Views, probes: NDArray[np.float32], progress: Progress = quiet
) -> NearestStudy:
    """Compare every unseen bone with the known bones its films chose.

    Parameters
    ----------
    experiment : the bones and the network.
    views : fingerprints of the known bones (the gallery is used), their part for shapes.
    probes : (unseen, pairs, s) the same part of the unseen bones' films' fingerprints.
    """
    truth = _distances_to_known(experiment, progress)
    rms = np.array([[d.rms_mm for d in row] for row in truth])
    chosen = distances(probes, views.gallery).min(axis=3).argmin(axis=2)
    mean_surface = mean_shape([b.surface for b in experiment.known])
    known_lengths = np.array([b.record.length_mm for b in experiment.known])
    names = experiment.gallery_names
    matches = []
    for index, bone in enumerate(experiment.unseen):
        picks = chosen[index]
        favourite = int(np.bincount(picks).argmax())
        by_length = int(np.abs(known_lengths - bone.record.length_mm).argmin())
        at = rms[index]
        picked = [truth[index][p] for p in picks]
        matches.append(
            NearestMatch(
                name=bone.record.name,
                chosen=names[favourite],
                share=float((picks == favourite).mean()),
                rms_mm=float(np.mean([d.rms_mm for d in picked])),
                hausdorff_mm=float(np.mean([d.hausdorff_mm for d in picked])),
                rms_relative=float(np.mean([d.rms_relative for d in picked])),
                hausdorff_relative=float(np.mean([d.hausdorff_relative for d in picked])),
                better=float(np.mean([(at < at[p]).sum() for p in picks])),
                same_length=names[by_length],
                same_length_rms_mm=float(at[by_length]),
                same_length_better=int((at < at[by_length]).sum()),
                best=names[int(at.argmin())],
                best_rms_mm=float(at.min()),
                mean_shape_rms_mm=compare(mean_surface, bone.surface)[0].rms_mm,
                any_rms_mm=float(at.mean()),
            )
        )
    return NearestStudy(matches, rms, mean_surface)


def compare(
    estimate: trimesh.Trimesh, truth: trimesh.Trimesh
) -> tuple[SurfaceDistance, trimesh.Trimesh]:
    """Surface distance after rigid alignment, and the estimate where it was aligned to."""
    moved = estimate.copy()
    moved.apply_transform(align_rigid(estimate, truth))
    return surface_distance(moved, truth), moved


def _distances_to_known(experiment: Experiment, progress: Progress) -> list[list[SurfaceDistance]]:
    """Every known bone aligned to every unseen one."""
    rows: list[list[SurfaceDistance]] = []
    total = len(experiment.unseen) * len(experiment.known)
    for bone in experiment.unseen:
        row: list[SurfaceDistance] = []
        for known in experiment.known:
            row.append(compare(known.surface, bone.surface)[0])
            progress(
                "Measuring against the truth", len(rows) * len(experiment.known) + len(row), total
            )
        rows.append(row)
    return rows
