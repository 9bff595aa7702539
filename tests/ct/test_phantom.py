"""Surfaces become volumes: exact occupancy first, then what is inside the bone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from scipy import ndimage

from osteoprint.ct.parametric import femur, sample_femur
from osteoprint.ct.phantom import CortexModel, principal_frame, volume_from_surface
from osteoprint.ct.voxelize import depth_voxels, occupancy
from osteoprint.errors import ScanError
from osteoprint.frames import apply, invert_rigid, rigid

UNIFORM = CortexModel(
    cortical_hu=1000.0, subchondral_hu=1000.0, trabecular_hu=1000.0, marrow_hu=1000.0
)


def grid(origin: tuple[float, float, float], spacing: float = 1.0) -> NDArray[np.float64]:
    matrix = np.diag([spacing, spacing, spacing, 1.0])
    matrix[:3, 3] = origin
    return matrix


def turned(mesh: trimesh.Trimesh, seed: int) -> trimesh.Trimesh:
    matrix = trimesh.transformations.random_rotation_matrix(np.random.default_rng(seed).random(3))
    matrix[:3, 3] = [120.0, -80.0, 1000.0]
    return mesh.copy().apply_transform(matrix)


@pytest.fixture(scope="module")
def bone() -> trimesh.Trimesh:
    return femur(sample_femur(np.random.default_rng(3)))


def test_one_voxel_half_filled() -> None:
    box = trimesh.creation.box(bounds=[[-0.5, -0.5, -0.5], [0.0, 0.5, 0.5]])
    assert occupancy(box, (1, 1, 1), np.eye(4))[0, 0, 0] == 0.5


def test_box_on_the_grid_planes_fills_its_voxels_and_no_other() -> None:
    # Every corner, edge and face falls exactly on planes between voxels.
    box = trimesh.creation.box(bounds=[[0.5, 1.5, 2.5], [3.5, 4.5, 5.5]])
    expected = np.zeros((8, 8, 8), dtype=np.float32)
    expected[1:4, 2:5, 3:6] = 1.0
    np.testing.assert_array_equal(occupancy(box, (8, 8, 8), np.eye(4)), expected)


def test_box_of_odd_size_is_the_product_of_its_overlaps() -> None:
    low, high = np.array([1.23, 0.71, 2.05]), np.array([5.61, 4.44, 4.98])
    box = trimesh.creation.box(bounds=[low, high])
    n = np.arange(8)[:, None]
    overlap = np.clip(np.minimum(n + 0.5, high) - np.maximum(n - 0.5, low), 0, 1)
    expected = np.einsum("i,j,k->ijk", *overlap.T)
    np.testing.assert_allclose(occupancy(box, (8, 8, 8), np.eye(4)), expected, atol=1e-6)


def test_sphere_has_its_volume_and_its_chords() -> None:
    radius = 20.0
    sphere = trimesh.creation.icosphere(subdivisions=5, radius=radius)
    occupied = occupancy(sphere, (51, 51, 51), grid((-25.0, -25.0, -25.0)))
    assert occupied.sum(dtype=np.float64) == pytest.approx(sphere.volume, rel=1e-6)
    assert occupied.sum(dtype=np.float64) == pytest.approx(4 / 3 * np.pi * radius**3, rel=3e-3)
    offset = np.arange(-10.0, 11.0)
    chord = 2 * np.sqrt(radius**2 - offset**2)
    for axis in range(3):
        lengths = np.moveaxis(occupied, axis, 0).sum(axis=0)[15:36, 25]
        np.testing.assert_allclose(lengths, chord, rtol=5e-3)


def test_spacing_rotation_and_a_mirrored_grid_do_not_change_the_volume(
    bone: trimesh.Trimesh,
) -> None:
    mesh = turned(bone, 1)
    low, high = mesh.bounds
    for flip in (1.0, -1.0):
        matrix = np.diag([2.0, 1.5 * flip, 2.5, 1.0])
        matrix[:3, 3] = [low[0] - 3, low[1] - 3 if flip > 0 else high[1] + 3, low[2] - 3]
        shape = np.ceil((high - low + 6) / [2.0, 1.5, 2.5]).astype(int) + 1
        occupied = occupancy(mesh, tuple(shape), matrix)
        assert occupied.sum(dtype=np.float64) * 7.5 == pytest.approx(mesh.volume, rel=1e-5)


def test_a_grid_within_the_bone_sees_what_the_whole_grid_sees(bone: trimesh.Trimesh) -> None:
    low = np.floor(bone.bounds[0]) - 1.3
    shape = tuple((np.ceil(np.ptp(bone.bounds, axis=0)) + 4).astype(int))
    whole = occupancy(bone, shape, grid(tuple(low)))
    part = occupancy(bone, (60, 20, 30), grid(tuple(np.add(low, [200, 30, 20]))))
    assert 0 < part.mean() < 1
    np.testing.assert_allclose(part, whole[200:260, 30:50, 20:50], atol=2e-6)


def test_overlapping_and_inverted_bodies_count_once() -> None:
    first = trimesh.creation.box(bounds=[[0.5, 0.5, 0.5], [4.5, 4.5, 4.5]])
    second = trimesh.creation.box(bounds=[[2.5, 0.5, 0.5], [6.5, 4.5, 4.5]])
    both = trimesh.util.concatenate([first, second])
    assert occupancy(both, (8, 8, 8), np.eye(4)).sum() == 96.0
    first.invert()
    assert occupancy(first, (8, 8, 8), np.eye(4)).sum() == 64.0


def test_unmerged_vertices_are_merged() -> None:
    box = trimesh.creation.box(bounds=[[0.5, 0.5, 0.5], [3.5, 3.5, 3.5]])
    soup = trimesh.Trimesh(
        box.triangles.reshape(-1, 3), np.arange(36).reshape(-1, 3), process=False
    )
    assert occupancy(soup, (6, 6, 6), np.eye(4)).sum() == 27.0


@pytest.mark.parametrize("spoil", ["hole", "turned face", "empty", "not a number", "flat"])
def test_unusable_surfaces_are_refused(spoil: str) -> None:
    box = trimesh.creation.box()
    vertices, faces = np.array(box.vertices), np.array(box.faces)
    if spoil == "hole":
        faces = faces[1:]
    elif spoil == "turned face":
        faces[0] = faces[0, ::-1]
    elif spoil == "empty":
        faces = faces[:0]
    elif spoil == "not a number":
        vertices[0, 0] = np.nan
    else:
        vertices[:, 2] = 0.0
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    with pytest.raises(ScanError, match="surface: "):
        volume_from_surface(mesh)


def test_depth_is_the_exact_distance_transform_refined_by_occupancy() -> None:
    rng = np.random.default_rng(0)
    occupied = np.where(rng.random((23, 17, 29)) < 0.97, 1.0, 0.25).astype(np.float32)
    expected = ndimage.distance_transform_edt(occupied >= 1) + 0.25 - 0.5
    np.testing.assert_allclose(depth_voxels(occupied), expected, atol=1e-5)


def test_depth_inside_a_sphere_is_right_to_a_fifth_of_a_voxel() -> None:
    sphere = trimesh.creation.icosphere(subdivisions=5, radius=20.0)
    occupied = occupancy(sphere, (51, 51, 51), grid((-25.0, -25.0, -25.0)))
    index = np.moveaxis(np.indices(occupied.shape) - 25.0, 0, -1)
    error = depth_voxels(occupied) - (20.0 - np.linalg.norm(index, axis=-1))
    inside = occupied >= 1
    assert np.sqrt(np.mean(error[inside] ** 2)) < 0.2
    # The worst are voxels whose corner alone is cut, diagonally.
    assert np.abs(error[inside]).max() < np.sqrt(3) / 2


def test_depth_of_a_full_grid_is_infinite() -> None:
    assert np.isinf(depth_voxels(np.ones((3, 4, 5), dtype=np.float32))).all()


def test_a_uniform_bone_conserves_its_volume_in_any_pose(bone: trimesh.Trimesh) -> None:
    for mesh, soft_mm in ((bone, None), (turned(bone, 2), None)):
        volume = volume_from_surface(mesh, cortex=UNIFORM, soft_tissue_mm=soft_mm, voxel_mm=1.5)
        share = (volume.volume_hu.astype(np.float64) + 1000.0) / 2000.0
        assert share.sum() * 1.5**3 == pytest.approx(mesh.volume, rel=1e-4)
        assert share.min() == 0.0
        assert share.max() == 1.0


def test_the_volume_lies_where_the_bone_lies(bone: trimesh.Trimesh) -> None:
    mesh = turned(bone, 4)
    volume = volume_from_surface(mesh, cortex=UNIFORM, voxel_mm=2.0)
    share = (volume.volume_hu.astype(np.float64) + 1000.0) / 2000.0
    index = np.stack([c.ravel() for c in np.indices(volume.shape)], axis=1).astype(float)
    centre = np.average(apply(volume.voxel_to_world, index), axis=0, weights=share.ravel())
    np.testing.assert_allclose(centre, mesh.center_mass, atol=0.02)


def test_the_default_grid_hugs_the_bone_whatever_its_pose(bone: trimesh.Trimesh) -> None:
    volume = volume_from_surface(turned(bone, 5), margin_mm=3.0)
    own = apply(invert_rigid(principal_frame(bone)), np.asarray(bone.vertices))
    np.testing.assert_allclose(volume.shape, np.ptp(own, axis=0) + 6, atol=1.01)
    np.testing.assert_allclose(volume.spacing_mm, 1.0)
    assert np.linalg.det(volume.voxel_to_world[:3, :3]) > 0


def test_the_grid_follows_a_given_frame(bone: trimesh.Trimesh) -> None:
    frame = rigid(
        trimesh.transformations.euler_matrix(0.3, 0.2, 0.1)[:3, :3], np.array([5.0, 6.0, 7.0])
    )
    volume = volume_from_surface(bone, bone_to_world=frame, voxel_mm=2.0, cortex=UNIFORM)
    np.testing.assert_allclose(volume.voxel_to_world[:3, :3], 2.0 * frame[:3, :3], atol=1e-12)
    share = (volume.volume_hu.astype(np.float64) + 1000.0) / 2000.0
    assert share.sum() * 8.0 == pytest.approx(bone.volume, rel=1e-4)


@pytest.mark.parametrize("matrix", [np.eye(3), 2 * np.eye(4), np.diag([1.0, 1.0, -1.0, 1.0])])
def test_a_frame_that_is_not_rigid_is_refused(matrix: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="bone_to_world"):
        volume_from_surface(trimesh.creation.box(), bone_to_world=matrix)


@pytest.mark.parametrize(
    "sizes",
    [{"voxel_mm": 0.0}, {"voxel_mm": np.nan}, {"margin_mm": -1.0}, {"soft_tissue_mm": -1.0}],
)
def test_sizes_that_are_none_are_refused(sizes: dict[str, float]) -> None:
    with pytest.raises(ScanError, match=next(iter(sizes))):
        volume_from_surface(trimesh.creation.box(), **sizes)


def test_a_grid_too_large_is_refused_before_it_is_made() -> None:
    huge = trimesh.creation.box(extents=(5000.0, 5000.0, 5000.0))
    with pytest.raises(ScanError, match="larger voxels"):
        volume_from_surface(huge)


def shaft_wall_mm(mesh: trimesh.Trimesh, voxel_mm: float) -> float:
    """Wall of the tube that a ray across mid-shaft meets first."""
    volume = volume_from_surface(mesh, bone_to_world=np.eye(4), voxel_mm=voxel_mm)
    section = volume.volume_hu[volume.shape[0] // 2]
    centre = np.round(ndimage.center_of_mass(section > 500)).astype(int)
    cortical = np.clip((section[centre[0], : centre[1]] + 80.0) / 1780.0, 0.0, 1.0)
    return float(cortical.sum() * voxel_mm)


def test_cortex_is_thick_in_the_shaft_thin_at_the_ends_and_scales(bone: trimesh.Trimesh) -> None:
    wall = shaft_wall_mm(bone, 1.0)
    assert 4.0 < wall < 8.0
    small = bone.copy().apply_scale(0.25)
    assert shaft_wall_mm(small, 0.25) == pytest.approx(wall / 4, rel=0.02)
    # Through the shell on top of the head, along x: mass above spongy bone, as cortex.
    volume = volume_from_surface(bone, bone_to_world=np.eye(4))
    full = volume.volume_hu[-45:]
    ray = full[:, *np.round(ndimage.center_of_mass(full[-10] > 0)).astype(int)]
    spongy = np.median(ray[ray > 0])
    shell = np.clip(ray[-12:] - spongy, 0, None).sum() / (1700.0 - spongy)
    assert 0.4 < shell < 2.0


def test_tissues_have_their_places_and_values(bone: trimesh.Trimesh) -> None:
    hu = volume_from_surface(bone, bone_to_world=np.eye(4)).volume_hu
    assert hu.dtype == np.float32
    assert hu.min() == -1000.0
    assert hu.max() == 1700.0
    middle = hu[hu.shape[0] // 2]
    centre = np.round(ndimage.center_of_mass(middle > 500)).astype(int)
    assert middle[tuple(centre)] == -80.0
    inside = occupancy(
        bone, hu.shape, volume_from_surface(bone, bone_to_world=np.eye(4)).voxel_to_world
    )
    deep = depth_voxels(inside) > 4
    ends = np.r_[5:35, hu.shape[0] - 35 : hu.shape[0] - 5]
    spongy = hu[ends][deep[ends]]
    assert spongy.min() >= 100.0
    assert spongy.max() <= 400.0


def test_soft_tissue_surrounds_the_bone_and_ends_in_air(bone: trimesh.Trimesh) -> None:
    volume = volume_from_surface(bone, bone_to_world=np.eye(4), voxel_mm=2.0, soft_tissue_mm=30.0)
    bare = volume_from_surface(bone, bone_to_world=np.eye(4), voxel_mm=2.0, margin_mm=35.0)
    assert volume.shape == bare.shape
    full = occupancy(bone, bare.shape, bare.voxel_to_world) == 1.0
    assert full.sum() > 10_000
    np.testing.assert_allclose(volume.volume_hu[full], bare.volume_hu[full], atol=1e-3)
    away = 2.0 * ndimage.distance_transform_edt(bare.volume_hu == -1000.0)
    np.testing.assert_allclose(volume.volume_hu[(away > 6) & (away < 17)], 50.0)
    np.testing.assert_allclose(volume.volume_hu[(away > 25) & (away < 27)], -100.0)
    np.testing.assert_allclose(volume.volume_hu[away > 35], -1000.0)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(bone: trimesh.Trimesh) -> None:
    one, same, other = (
        volume_from_surface(bone, voxel_mm=2.0, rng=np.random.default_rng(seed)).volume_hu
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 50.0
    plain = volume_from_surface(bone, voxel_mm=2.0).volume_hu
    np.testing.assert_array_equal(one == -1000.0, plain == -1000.0)


@pytest.mark.real
def test_a_real_femur_conserves_its_volume_in_its_arbitrary_pose(real_data: Path) -> None:
    mesh = trimesh.load(real_data / "smir_right_femora" / "05.ply", process=False)
    volume = volume_from_surface(mesh, cortex=UNIFORM)
    share = (volume.volume_hu.astype(np.float64) + 1000.0) / 2000.0
    assert share.sum() == pytest.approx(mesh.volume, rel=1e-4)
    assert max(volume.shape) == volume.shape[0]
