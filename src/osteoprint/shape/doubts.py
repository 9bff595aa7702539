"""When a registration is not to be trusted, and why.

Any template can be laid onto anything. What shows that it should not have been is how much it had
to be stretched, how it lies, what it did not reach, and whether it folded.
"""

from __future__ import annotations

import numpy as np
import trimesh
from numpy.typing import NDArray

from osteoprint.shape.distance import SurfaceDistance
from osteoprint.shape.placing import Placement, Target, vertex_normals
from osteoprint.shape.template import Template

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Laid onto their like, templates of femora and tibiae are strained by 0.06 to 0.11, a human
# femur's onto a cat's by 0.16; onto the wrong side by 0.25 to 0.37, and onto another bone by 0.29
# to 0.48.
MOST_STRAIN = 0.2
# Parts of the better misfit.
OTHER_SIDE = 0.85
AMBIGUOUS = 1.1
# Parts of the bone's diagonal: 0.5 and 2 mm on a human femur.
MOST_RMS = 0.001
MOST_WORST = 0.0043


def doubts(
    distance: SurfaceDistance,
    folds: int,
    stretch: float,
    placement: Placement,
    other: Placement,
    holes: int,
    most_worst_mm: float,
) -> tuple[str, ...]:
    """What speaks against a registration, in words.

    `placement` and `other` are on the bone as the caller said it is, and on its mirror image;
    `holes` run through the bone, which no template without any can follow; no point of it may be
    missed by more than `most_worst_mm`.
    """
    reasons = []
    ways = (distance.estimate_to_truth, distance.truth_to_estimate)
    rms = max(way.rms_mm for way in ways)
    worst = max(way.hausdorff_mm for way in ways)
    size = distance.diagonal_mm
    if stretch > MOST_STRAIN:
        reasons.append(f"another bone than the template, or not a whole one: strain {stretch:.0%}")
    if other.misfit < OTHER_SIDE * placement.misfit:
        reasons.append("of the other side: its mirror image resembles the template more")
    if placement.runner_up < AMBIGUOUS * placement.misfit:
        reasons.append("which way round it lies is not certain: two poses fit alike")
    if rms > MOST_RMS * size:
        reasons.append(f"the template does not lie on it: {rms:.2f} mm RMS")
    if worst > most_worst_mm:
        some = "a hole runs" if holes == 1 else f"{holes} holes run"
        hint = f", and {some} through it: close what should be closed" if holes else ""
        reasons.append(f"a part of it was not reached: {worst:.1f} mm off{hint}")
    if folds:
        reasons.append(f"{folds} triangles are folded")
    return tuple(reasons)


def folded(vertices: Floats, faces: Ints, target: Target) -> NDArray[np.bool_]:
    """(m,) which triangles are folded over.

    A triangle is folded if its normal points away (by more than 90 degrees) from the mean of
    the normals of its own three vertices, or from the normal of the target nearest
    to its middle; also if it has no area.
    """
    triangles = vertices[faces]
    cross = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    around = vertex_normals(vertices, faces)[faces].sum(axis=1)
    there = target.normals_at(triangles.mean(axis=1))
    against = np.minimum((cross * around).sum(axis=1), (cross * there).sum(axis=1))
    return np.asarray(against <= 0)


def handles(surface: trimesh.Trimesh) -> int:
    """How many holes run through one closed surface: 0 for a ball, 1 for a ring."""
    return 1 - int(surface.euler_number) // 2


def strain(template: Template, vertices: Floats) -> float:
    """How much the template is stretched and sheared to be `vertices`, beyond its size.

    RMS over its area of the logarithms of both principal stretches: 0.1 is a tenth.
    """
    before, after = (_in_plane(v[template.faces]) for v in (template.vertices, vertices))
    area = np.linalg.det(before)
    stretches = np.linalg.svd(after @ np.linalg.inv(before), compute_uv=False)
    logs = np.log(np.maximum(stretches, 1e-6))
    logs -= np.average(logs.mean(axis=1), weights=area)
    return float(np.sqrt(np.average((logs**2).mean(axis=1), weights=area)))


def _in_plane(triangles: Floats) -> Floats:
    """(m, 2, 2) both edges from the first corner of (m, 3, 3) triangles, as columns, in axes
    of the triangle's own plane."""
    first, second = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    length = np.maximum(np.linalg.norm(first, axis=1), 1e-12)
    along = (second * first).sum(axis=1) / length
    height = np.linalg.norm(np.cross(first, second), axis=1) / length
    rows = [np.stack([length, along], axis=1), np.stack([0 * length, height], axis=1)]
    return np.stack(rows, axis=1)
