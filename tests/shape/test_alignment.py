"""Poses that are known because the test made them; then real femora."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from osteoprint.errors import InputError
from osteoprint.frames import apply, rigid
from osteoprint.shape.alignment import align_rigid, kabsch
from osteoprint.shape.distance import surface_distance
from osteoprint.shape.surface_index import SurfaceIndex


def some_motion(seed: int, shift_mm: float = 300.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rigid(Rotation.random(random_state=rng).as_matrix(), rng.normal(0, shift_mm, 3))


def lump() -> trimesh.Trimesh:
    """A long body without any symmetry, about 100 mm long."""
    mesh = trimesh.creation.icosphere(subdivisions=4)
    x, y, z = mesh.vertices.T
    swell = 1 + 0.5 * np.exp(2 * x + y - 2.5) + 0.2 * np.exp(3 * (z - x) - 4)
    mesh.vertices = mesh.vertices * swell[:, None] * [45, 14, 10] + np.outer(y**2, [0, 0, 6])
    return mesh


def rms_after(moving: trimesh.Trimesh, fixed: trimesh.Trimesh | SurfaceIndex) -> float:
    matrix = align_rigid(moving, fixed)
    assert np.allclose(matrix[:3, :3].T @ matrix[:3, :3], np.eye(3), atol=1e-9)
    assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1.0)
    assert np.array_equal(matrix[3], [0, 0, 0, 1])
    return surface_distance(moving.copy().apply_transform(matrix), fixed).rms_mm


def test_kabsch_undoes_a_motion() -> None:
    source = np.random.default_rng(0).normal(0, 50, (10, 3))
    motion = some_motion(1)
    assert np.allclose(kabsch(source, apply(motion, source)), motion, atol=1e-9)


def test_kabsch_never_mirrors() -> None:
    source = np.random.default_rng(0).normal(0, 50, (10, 3))
    matrix = kabsch(source, source * [-1, 1, 1])
    assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1.0)


def test_kabsch_with_points_in_a_plane_is_still_a_rotation() -> None:
    flat = np.random.default_rng(0).normal(0, 50, (6, 3)) * [1, 1, 0]
    motion = some_motion(4)
    assert np.allclose(kabsch(flat, apply(motion, flat)), motion, atol=1e-9)


def test_kabsch_weighs() -> None:
    source = np.random.default_rng(0).normal(0, 50, (10, 3))
    target = apply(some_motion(2), source)
    target[0] += 100
    weights = np.ones(10)
    weights[0] = 0
    assert np.allclose(kabsch(source, target, weights), some_motion(2), atol=1e-9)
    # A weight of two is a point given twice.
    weights[0] = 2
    twice = kabsch(np.vstack([source, source[:1]]), np.vstack([target, target[:1]]))
    assert np.allclose(kabsch(source, target, weights), twice, atol=1e-9)


@pytest.mark.parametrize(
    ("source", "target", "weights"),
    [
        (np.zeros((3, 3)), np.zeros((4, 3)), None),
        (np.zeros((0, 3)), np.zeros((0, 3)), None),
        (np.zeros((3, 2)), np.zeros((3, 2)), None),
        (np.full((3, 3), np.nan), np.zeros((3, 3)), None),
        (np.zeros((3, 3)), np.zeros((3, 3)), np.zeros(3)),
        (np.zeros((3, 3)), np.zeros((3, 3)), np.array([1.0, -1, 1])),
        (np.zeros((3, 3)), np.zeros((3, 3)), np.ones(2)),
    ],
)
def test_kabsch_refuses(source: np.ndarray, target: np.ndarray, weights: np.ndarray) -> None:
    with pytest.raises(InputError):
        kabsch(source, target, weights)


@pytest.mark.parametrize("seed", range(6))
def test_a_moved_surface_is_brought_back(seed: int) -> None:
    mesh, motion = lump(), some_motion(seed)
    found = align_rigid(mesh, mesh.copy().apply_transform(motion))
    assert np.abs(apply(found, mesh.vertices) - apply(motion, mesh.vertices)).max() < 1e-6


def test_the_same_input_gives_the_same_pose() -> None:
    first, second = lump(), lump().apply_scale([1.1, 1, 0.9]).apply_transform(some_motion(3))
    assert np.array_equal(align_rigid(first, second), align_rigid(first, second))
    prepared = align_rigid(SurfaceIndex.build(first), SurfaceIndex.build(second))
    assert np.array_equal(align_rigid(first, second), prepared)


def test_either_way_round_the_distance_is_the_same() -> None:
    first, second = lump(), lump().apply_scale([1.1, 1, 0.9]).apply_transform(some_motion(3))
    assert rms_after(first, second) == pytest.approx(rms_after(second, first), rel=1e-3)


def test_a_mirror_image_is_not_matched() -> None:
    mesh = lump()
    assert rms_after(mesh.copy().apply_transform(np.diag([1, 1, -1, 1])), mesh) > 0.2


def test_a_size_error_stays() -> None:
    mesh = lump()
    motion = some_motion(8)
    larger = mesh.copy().apply_scale(1.05).apply_transform(motion)
    assert rms_after(larger, mesh) > 0.3


def test_the_minimum_is_a_minimum_of_the_surface_distance() -> None:
    first, second = lump(), lump().apply_scale([1.1, 1, 0.9])
    matrix = align_rigid(first, second)
    moved = first.copy().apply_transform(matrix)
    best = surface_distance(moved, second).rms_mm
    for step in np.vstack([np.eye(6), -np.eye(6)]):
        nudge = rigid(Rotation.from_rotvec(step[3:] * 0.01).as_matrix(), step[:3] * 0.3)
        assert surface_distance(moved.copy().apply_transform(nudge), second).rms_mm > best


def test_a_start_is_followed_locally() -> None:
    mesh, motion = lump(), some_motion(5)
    nearby = motion @ rigid(Rotation.from_rotvec([0.05, -0.03, 0.04]).as_matrix(), np.ones(3))
    found = align_rigid(mesh, mesh.copy().apply_transform(motion), start=nearby)
    assert np.allclose(found, motion, atol=1e-6)


def test_what_is_no_surface_or_no_pose_is_refused() -> None:
    mesh = lump()
    with pytest.raises(InputError, match="moving"):
        align_rigid(trimesh.Trimesh(), mesh)
    with pytest.raises(InputError, match="fixed"):
        align_rigid(mesh, trimesh.Trimesh())
    for start in (np.diag([-1.0, 1, 1, 1]), np.diag([2.0, 2, 2, 1]), np.eye(3), np.eye(4) * np.nan):
        with pytest.raises(InputError, match="start"):
            align_rigid(mesh, mesh, start=start)


@pytest.fixture(scope="module")
def femora(real_data: Path) -> list[trimesh.Trimesh]:
    paths = [real_data / "smir_right_femora" / f"{n:02d}.ply" for n in (1, 2)]
    return [trimesh.load(path, process=False) for path in paths]


@pytest.mark.real
def test_a_real_femur_is_brought_back(femora: list[trimesh.Trimesh]) -> None:
    motion = some_motion(11)
    found = align_rigid(femora[0], femora[0].copy().apply_transform(motion))
    moved = apply(motion, femora[0].vertices)
    assert np.abs(apply(found, femora[0].vertices) - moved).max() < 1e-3


@pytest.mark.real
def test_the_pose_two_femora_come_in_does_not_matter(femora: list[trimesh.Trimesh]) -> None:
    fixed = SurfaceIndex.build(femora[1])
    results = [
        rms_after(femora[0].copy().apply_transform(some_motion(n)), fixed) for n in range(20)
    ]
    assert max(results) / min(results) - 1 < 0.005
    assert max(results) < 5.0


@pytest.mark.real
def test_a_left_femur_stays_left_and_a_large_one_large(femora: list[trimesh.Trimesh]) -> None:
    femur = femora[0]
    assert rms_after(femur.copy().apply_transform(np.diag([-1, 1, 1, 1])), femur) > 1.0
    assert rms_after(femur.copy().apply_scale(1.03), femur) > 1.0
