"""One surface laid onto another by rotation and translation: never mirrored, never scaled.

What is minimised is the symmetric surface RMS of ``distance.surface_distance``: the
squared distance from each surface to the other, every mm^2 of both counting the same. It
is sampled at points fixed to each surface, and brought down by a damped Gauss-Newton
iteration on the six parameters of the pose, whose residuals are the distances themselves
and whose gradients are their directions (both exact: the nearest point being nearest, its
own motion does not count to first order).

The start is the pose that lays the principal axes onto each other. They are ambiguous in
sign, and around a round shaft in angle too, so sixteen turns are tried on few points, and
the best are followed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from osteoprint.errors import InputError
from osteoprint.frames import apply, invert_rigid, rigid
from osteoprint.shape.distance import surface_points
from osteoprint.shape.surface_index import SurfaceIndex

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

COARSE_POINTS = 250
MIDDLE_POINTS = 1000
FINAL_POINTS = 4000
TURNS = 8
# Followed for so many steps on few points, and how many of the best of them go on.
FOLLOWED = ((6, 4), (2, 15))


def kabsch(source: Floats, target: Floats, weights: Floats | None = None) -> Floats:
    """The rigid transform that brings paired points closest together.

    Minimises the weighted sum of squared distances; always a proper rotation (Kabsch, Acta
    Cryst A 1976;32:922, with the sign of the determinant kept: Umeyama, IEEE TPAMI
    1991;13:376).

    Parameters
    ----------
    source, target : (n, 3) mm, row by row the same point.
    weights : (n,) not negative, not all zero; None for equal ones.

    Returns
    -------
    (4, 4) source_to_target.

    Raises
    ------
    InputError : shapes differ, nothing to align, not finite, or weights that weigh nothing.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 3 or not len(source):
        raise InputError(
            "paired points",
            f"have shapes {source.shape} and {target.shape}",
            "give two (n, 3) arrays of the same length",
        )
    mass = np.ones(len(source)) if weights is None else np.asarray(weights, np.float64)
    if mass.shape != (len(source),) or not (mass >= 0).all() or not 0 < mass.sum() < np.inf:
        raise InputError("weights", "do not weigh the points", "give (n,) weights above 0")
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise InputError("paired points", "are not all finite", "leave out the missing ones")
    mass = mass / mass.sum()
    source_middle, target_middle = mass @ source, mass @ target
    covariance = (target - target_middle).T @ ((source - source_middle) * mass[:, None])
    u, _, vt = np.linalg.svd(covariance)
    u[:, 2] *= np.sign(np.linalg.det(u @ vt))
    rotation = u @ vt
    return rigid(rotation, target_middle - rotation @ source_middle)


def align_rigid(
    moving: trimesh.Trimesh | SurfaceIndex,
    fixed: trimesh.Trimesh | SurfaceIndex,
    *,
    start: Floats | None = None,
) -> Floats:
    """The rigid transform that lays `moving` onto `fixed` with the least surface RMS.

    Deterministic. Nothing is mirrored or scaled: a left bone laid onto a right one stays a
    left bone, a bone that is too small stays so.

    Parameters
    ----------
    moving, fixed : surfaces in mm, each in its own frame; or their indices, built before.
    start : (4, 4) rigid, a first moving_to_fixed; the search around it is local. None to
        search all poses.

    Returns
    -------
    (4, 4) moving_to_fixed, rigid.

    Raises
    ------
    InputError : a surface is empty, without area, or not finite; `start` is not rigid.
    """
    first = moving if isinstance(moving, SurfaceIndex) else SurfaceIndex.build(moving, "moving")
    second = fixed if isinstance(fixed, SurfaceIndex) else SurfaceIndex.build(fixed, "fixed")
    if start is None:
        coarse = _Pair.of(first, second, COARSE_POINTS)
        poses = [_begin(coarse, pose) for pose in _principal_poses(first, second)]
        for keep, steps in FOLLOWED:
            poses = sorted(poses, key=lambda pose: pose.cost)[:keep]
            poses = [_descend(coarse, pose, steps, 1e-3) for pose in poses]
        start = min(poses, key=lambda pose: pose.cost).matrix
    start = _checked_pose(start)
    middle = _Pair.of(first, second, MIDDLE_POINTS)
    pose = _descend(middle, _begin(middle, start), 40, 1e-4)
    final = _Pair.of(first, second, FINAL_POINTS)
    return _descend(final, _begin(final, pose.matrix), 60, 1e-7).matrix


def _checked_pose(start: Floats) -> Floats:
    """`start` as it came, if it is a rotation and a translation."""
    matrix = np.asarray(start, dtype=np.float64)
    if matrix.shape == (4, 4) and np.isfinite(matrix).all():
        rotation = matrix[:3, :3]
        proper = np.allclose(rotation.T @ rotation, np.eye(3), atol=1e-6)
        if proper and np.linalg.det(rotation) > 0 and np.array_equal(matrix[3], [0, 0, 0, 1]):
            return matrix
    raise InputError("start", "is not a rigid pose", "give a (4, 4) rotation with translation")


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two surfaces and (k, 3) points on each, every one of which stands for the same area."""

    moving: SurfaceIndex
    fixed: SurfaceIndex
    on_moving: Floats
    on_fixed: Floats

    @classmethod
    def of(cls, moving: SurfaceIndex, fixed: SurfaceIndex, count: int) -> _Pair:
        """`count` points on the average of both surfaces."""
        areas = np.array([moving.areas.sum(), fixed.areas.sum()])
        counts = np.maximum(np.round(2 * count * areas / areas.sum()), 30).astype(int)
        return cls(
            moving, fixed, surface_points(moving, counts[0]), surface_points(fixed, counts[1])
        )


@dataclass(frozen=True, eq=False)
class _Pose:
    """A pose (moving_to_fixed), its mean squared distance in mm^2, and how both change.

    ``residuals`` (k,) mm; ``slopes`` (k, 6) their derivatives by a translation and a
    rotation (radians) about ``pivot``; ``hints`` the nearest faces, for the next query.
    """

    matrix: Floats
    cost: float
    residuals: Floats
    slopes: Floats
    pivot: Floats
    hints: tuple[Ints, Ints]


def _begin(pair: _Pair, matrix: Floats, hints: tuple[Ints, Ints] | None = None) -> _Pose:
    """Measure `pair` in the pose `matrix`."""
    moved = apply(matrix, pair.on_moving)
    there, near, faces = pair.fixed.nearest(moved, hints[0] if hints else None)
    brought = apply(invert_rigid(matrix), pair.on_fixed)
    back, near_back, faces_back = pair.moving.nearest(brought, hints[1] if hints else None)
    # Direction in which each distance grows when the moving surface is shifted.
    out = _directions(moved - near, there)
    into = _directions(near_back - brought, back) @ matrix[:3, :3].T
    pivot = moved.mean(axis=0)
    arms = np.concatenate([moved, pair.on_fixed]) - pivot
    pull = np.concatenate([out, into])
    residuals = np.concatenate([there, back])
    return _Pose(
        matrix=matrix,
        cost=float(residuals @ residuals / len(residuals)),
        residuals=residuals,
        slopes=np.concatenate([pull, np.cross(arms, pull)], axis=1),
        pivot=pivot,
        hints=(faces, faces_back),
    )


def _directions(gaps: Floats, distances: Floats) -> Floats:
    """(k, 3) unit vectors along `gaps`; none where surfaces touch, and no slope there."""
    touching = distances == 0.0
    return np.asarray(
        np.where(touching, 0.0, 1 / np.where(touching, 1.0, distances))[:, None] * gaps
    )


def _descend(pair: _Pair, pose: _Pose, steps: int, tolerance: float) -> _Pose:
    """Levenberg-Marquardt from `pose`, until a step gains less than `tolerance` of the cost."""
    damping = 1e-3
    for _ in range(steps):
        hessian = pose.slopes.T @ pose.slopes
        gradient = pose.slopes.T @ pose.residuals
        scale = np.diag(np.maximum(np.diag(hessian), 1e-12))
        step = -np.linalg.lstsq(hessian + damping * scale, gradient, rcond=1e-14)[0]
        rotation = Rotation.from_rotvec(step[3:]).as_matrix()
        motion = rigid(rotation, pose.pivot + step[:3] - rotation @ pose.pivot)
        trial = _begin(pair, motion @ pose.matrix, pose.hints)
        if trial.cost < pose.cost:
            gained = pose.cost - trial.cost
            small = gained <= tolerance * pose.cost
            pose = trial
            damping = max(damping / 5, 1e-9)
            if small:
                break
        elif damping > 1e3:
            break
        else:
            damping *= 8
    return pose


def _principal_poses(moving: SurfaceIndex, fixed: SurfaceIndex) -> list[Floats]:
    """Poses that lay long axis onto long axis, either way round, in all the turns."""
    first, second = _principal_frame(moving), _principal_frame(fixed)
    poses = []
    for flip in (0.0, np.pi):
        for turn in 2 * np.pi / TURNS * np.arange(TURNS):
            swing = Rotation.from_euler("xy", [turn, flip]).as_matrix()
            poses.append(second @ rigid(swing, np.zeros(3)) @ invert_rigid(first))
    return poses


def _principal_frame(surface: SurfaceIndex) -> Floats:
    """(4, 4) from principal axes (longest first, right-handed) to the surface's own frame."""
    points = surface_points(surface, 4000)
    middle = points.mean(axis=0)
    axes = np.linalg.eigh((points - middle).T @ (points - middle))[1][:, ::-1].copy()
    axes[:, 2] = np.cross(axes[:, 0], axes[:, 1])
    return rigid(axes, middle)
