"""A changed bone is whole, lies where its points are said to lie, and can be changed back."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from scipy.ndimage import map_coordinates

from osteoprint.ct.parametric import sample_bone
from osteoprint.ct.phantom import volume_from_surface
from osteoprint.ct.variation import Variation, varied
from osteoprint.frames import Side, anatomical_frame, apply

SEEDS = range(8)


@pytest.fixture(scope="module")
def bone() -> tuple[trimesh.Trimesh, float]:
    """A femur in its anatomical frame, and its length."""
    surface, _ = sample_bone(np.random.default_rng(0), kind="femur", side=Side.RIGHT)
    frame = anatomical_frame(surface.vertices, surface.faces, bone="femur", side=Side.RIGHT)
    local = apply(frame.world_to_bone, np.asarray(surface.vertices))
    return trimesh.Trimesh(local, surface.faces, process=False), frame.length_mm


def drawn(length: float, seed: int) -> Variation:
    return Variation.draw(length, np.random.default_rng(seed), (0.9 * length, 1.1 * length))


def test_no_variation_changes_nothing(bone: tuple[trimesh.Trimesh, float]) -> None:
    points = np.asarray(bone[0].vertices)
    assert np.array_equal(Variation.none()(points), points)
    assert np.array_equal(Variation.none().undone(points), points)


@pytest.mark.parametrize("seed", SEEDS)
def test_undone_is_the_inverse(bone: tuple[trimesh.Trimesh, float], seed: int) -> None:
    surface, length = bone
    change = drawn(length, seed)
    back = change.undone(change(np.asarray(surface.vertices)))
    assert np.abs(back - surface.vertices).max() < 0.02


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_folds(bone: tuple[trimesh.Trimesh, float], seed: int) -> None:
    surface, length = bone
    change = drawn(length, seed)
    points, step = np.asarray(surface.vertices)[::7], 0.01
    sides = [
        (change(points + step * e) - change(points - step * e)) / (2 * step) for e in np.eye(3)
    ]
    assert np.linalg.det(np.stack(sides, axis=-1)).min() > 0.4


def test_the_length_stays_within_its_limits(bone: tuple[trimesh.Trimesh, float]) -> None:
    surface, length = bone
    for seed in range(20):
        change = Variation.draw(length, np.random.default_rng(seed), (length, 1.04 * length))
        moved = change(np.asarray(surface.vertices))
        assert 0.98 < np.ptp(moved[:, 0]) / length < 1.06


def test_the_changed_scan_shows_the_changed_surface(bone: tuple[trimesh.Trimesh, float]) -> None:
    surface, length = bone
    frame = anatomical_frame(surface.vertices, surface.faces, bone="femur", side=Side.RIGHT)
    volume = volume_from_surface(
        surface, voxel_mm=2.0, bone_to_world=frame.bone_to_world, rng=np.random.default_rng(1)
    )
    change = drawn(length, 3)
    out = varied(volume, frame, change)
    local = apply(frame.world_to_bone, np.asarray(surface.vertices))
    moved = trimesh.Trimesh(change(local), surface.faces, process=False)
    normals = np.asarray(moved.vertex_normals)

    def hu(depth_mm: float) -> np.ndarray:
        at = apply(frame.bone_to_world, np.asarray(moved.vertices) - depth_mm * normals)
        return map_coordinates(out.volume_hu, apply(out.world_to_voxel, at).T, order=1)

    assert (hu(2.0) > 100).mean() > 0.97
    assert (hu(-2.5) < -700).mean() > 0.97
    # And not of the old one.
    moved = trimesh.Trimesh(local, surface.faces, process=False)
    assert (hu(2.0) > 100).mean() < 0.85


def test_the_same_seed_gives_the_same_change(bone: tuple[trimesh.Trimesh, float]) -> None:
    points, length = np.asarray(bone[0].vertices), bone[1]
    assert np.array_equal(drawn(length, 1)(points), drawn(length, 1)(points))
    assert not np.allclose(drawn(length, 1)(points), drawn(length, 2)(points))
