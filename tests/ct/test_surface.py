"""Spheres first: where the surface is, how it is wound, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh

from osteoprint.ct.surface import (
    check_surface,
    read_surface,
    surface_from_level,
    surface_from_mask,
)
from osteoprint.ct.volume import Volume
from osteoprint.errors import ScanError

RADIUS = 20.0
CENTRE = np.array([3.13, -7.21, 11.4])


def ball(spacing: tuple[float, float, float], wall_mm: float = RADIUS) -> Volume:
    """A ball of radius 20 mm, 1000 HU, blurred over 1 mm, in 50 HU; hollow below the wall."""
    step = np.array(spacing)
    count = np.ceil(54 / np.abs(step)).astype(int)
    matrix = np.diag([*step, 1.0])
    matrix[:3, 3] = CENTRE - step * (count - 1) / 2 + 0.17 * np.abs(step)
    grid = np.moveaxis(np.indices(count), 0, -1) @ matrix[:3, :3].T + matrix[:3, 3]
    radius = np.linalg.norm(grid - CENTRE, axis=-1)
    hu = 50 + 950 * np.clip(RADIUS - radius + 0.5, 0, 1)
    hu[radius < RADIUS - wall_mm] = -50
    return Volume(hu.astype(np.float32), matrix)


def deviation(mesh: trimesh.Trimesh) -> np.ndarray:
    return np.linalg.norm(mesh.vertices - CENTRE, axis=1) - RADIUS


def assert_one_shell(mesh: trimesh.Trimesh) -> None:
    assert check_surface(mesh, "mesh") == []
    assert mesh.euler_number == 2
    outwards = np.einsum("ij,ij->i", mesh.face_normals, mesh.triangles_center - CENTRE)
    assert outwards.min() > 0


@pytest.mark.parametrize(
    "spacing", [(1, 1, 1), (1, 1, -1), (0.8, 0.8, 1.2), (0.5, 0.5, 2), (-1, 1, 1)]
)
def test_a_ball_from_its_mask(spacing: tuple[float, float, float]) -> None:
    volume = ball(spacing)
    mask = volume.volume_hu > 525
    for hu in (None, volume.volume_hu):
        mesh = surface_from_mask(mask, volume.voxel_to_world, volume_hu=hu)
        assert_one_shell(mesh)
        assert np.sqrt(np.mean(deviation(mesh) ** 2)) < 0.15
        assert mesh.volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.01)


def test_the_edge_decides_and_not_the_threshold_of_the_mask() -> None:
    volume = ball((1, 1, 1), wall_mm=4)
    radius = RADIUS - deviation_of_grid(volume)
    for threshold_radius in (RADIUS - 0.6, RADIUS + 0.6):
        mask = radius < threshold_radius
        plain = surface_from_mask(mask, volume.voxel_to_world)
        snapped = surface_from_mask(mask, volume.voxel_to_world, volume_hu=volume.volume_hu)
        assert abs(deviation(plain).mean()) > 0.5
        assert abs(deviation(snapped).mean()) < 0.05
        assert np.sqrt(np.mean(deviation(snapped) ** 2)) < 0.1


def deviation_of_grid(volume: Volume) -> np.ndarray:
    grid = np.moveaxis(np.indices(volume.shape), 0, -1)
    world = grid @ volume.voxel_to_world[:3, :3].T + volume.voxel_to_world[:3, 3]
    return RADIUS - np.linalg.norm(world - CENTRE, axis=-1)


def test_a_mask_that_touches_the_border_is_closed_there() -> None:
    mesh = surface_from_mask(np.ones((20, 21, 22), bool), np.eye(4), taubin_rounds=0)
    assert check_surface(mesh, "block") == []
    assert mesh.is_watertight
    assert mesh.extents == pytest.approx([20, 21, 22], abs=0.4)
    assert mesh.volume == pytest.approx(20 * 21 * 22, rel=0.01)


def test_only_the_largest_piece_and_no_cavity() -> None:
    volume = ball((1, 1, 1), wall_mm=4)
    mask = volume.volume_hu > 525
    assert not mask[tuple(np.array(mask.shape) // 2)]
    mask[:3, :3, :3] = True
    mesh = surface_from_mask(mask, volume.voxel_to_world)
    assert_one_shell(mesh)
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.01)


def test_a_ball_from_its_level() -> None:
    volume = ball((1, 1, -1), wall_mm=4)
    volume.volume_hu[:3, :3, :3] = 3000
    mesh = surface_from_level(volume, 525.0)
    assert_one_shell(mesh)
    assert np.sqrt(np.mean(deviation(mesh) ** 2)) < 0.05
    whole = surface_from_level(volume.crop((0, 0, 0), (27, 99, 99)), 525.0)
    assert whole.is_watertight
    assert whole.volume < 0.6 * mesh.volume


def test_shear_is_kept() -> None:
    volume = ball((1, 1, 1))
    sheared = volume.voxel_to_world.copy()
    sheared[:3, 2] += [0, 0.2, 0]
    straight = surface_from_mask(volume.volume_hu > 525, volume.voxel_to_world, taubin_rounds=0)
    tilted = surface_from_mask(volume.volume_hu > 525, sheared, taubin_rounds=0)
    assert tilted.volume == pytest.approx(straight.volume, rel=0.01)
    assert tilted.extents[1] > straight.extents[1] + 0.5


def test_nothing_has_no_surface() -> None:
    with pytest.raises(ValueError, match="not empty"):
        surface_from_mask(np.zeros((5, 5, 5), bool), np.eye(4))
    with pytest.raises(ValueError, match="brighter"):
        surface_from_level(Volume(np.zeros((5, 5, 5), np.int16), np.eye(4)), 100)
    with pytest.raises(ValueError, match="differ in shape"):
        surface_from_mask(np.ones((5, 5, 5), bool), np.eye(4), volume_hu=np.ones((5, 5, 4)))


def sphere(radius: float = RADIUS) -> trimesh.Trimesh:
    return trimesh.creation.icosphere(4, radius)


@pytest.mark.parametrize("suffix", ["ply", "stl", "obj"])
def test_surfaces_are_read_as_they_were_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bone.{suffix}"
    sphere().export(path)
    mesh = read_surface(path)
    assert mesh.is_watertight
    assert len(mesh.vertices) == len(sphere().vertices)
    assert mesh.bounds == pytest.approx(sphere().bounds, abs=1e-5)


def test_a_surface_inside_out_is_turned(tmp_path: Path) -> None:
    turned = sphere()
    turned.invert()
    with pytest.raises(ScanError, match="inside out"):
        check_surface(turned, "turned")
    turned.export(tmp_path / "bone.ply")
    assert read_surface(tmp_path / "bone.ply").volume > 0


def with_hole() -> trimesh.Trimesh:
    mesh = sphere()
    mesh.update_faces(np.arange(len(mesh.faces)) > 3)
    return mesh


def with_fin() -> trimesh.Trimesh:
    mesh = sphere()
    a, b = mesh.faces[0][:2]
    vertices = np.vstack([mesh.vertices, [[0, 0, 30.0]]])
    return trimesh.Trimesh(
        vertices, np.vstack([mesh.faces, [[a, b, len(vertices) - 1]] * 2]), process=False
    )


def with_nan() -> trimesh.Trimesh:
    mesh = sphere()
    mesh.vertices[5] = np.nan
    return mesh


def pinched() -> trimesh.Trimesh:
    a, b = trimesh.creation.box((9, 9, 9)), trimesh.creation.box((9, 9, 9))
    b.apply_translation([9, 9, 9])
    mesh = trimesh.util.concatenate([a, b])
    mesh.merge_vertices()
    return mesh


@pytest.mark.parametrize(
    ("mesh", "said"),
    [
        (with_hole(), "holes"),
        (with_fin(), "more than two faces"),
        (with_nan(), "1 vertices are not numbers"),
        (sphere(0.02), "metres or centimetres"),
        (sphere(20000), "micrometres"),
        (trimesh.Trimesh(), "no faces"),
        (
            trimesh.util.concatenate([sphere(), sphere().apply_translation([60, 0, 0])]),
            "2 separate shells",
        ),
        (pinched(), "2 separate shells"),
    ],
)
def test_what_is_no_bone_is_refused(mesh: trimesh.Trimesh, said: str) -> None:
    with pytest.raises(ScanError, match=said) as refusal:
        check_surface(mesh, "bone.ply")
    assert str(refusal.value).startswith("bone.ply: ")
    assert "\n" not in str(refusal.value)


def test_a_coarse_surface_is_a_warning() -> None:
    assert check_surface(trimesh.creation.icosphere(2, 20.0), "bone.ply") == [
        "a coarse surface: 320 faces"
    ]


@pytest.mark.parametrize("suffix", ["ply", "stl", "obj"])
@pytest.mark.parametrize("damage", ["empty", "half", "text", "zeros", "huge count"])
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"bone.{suffix}"
    sphere().export(path)
    whole = path.read_bytes()
    content = {
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "text": b"the quick brown fox\njumps over the lazy dog\n" * 9,
        "zeros": bytes(500),
        "huge count": whole[:80] + b"\xff\xff\xff\x7f" + whole[84:]
        if suffix == "stl"
        else whole.replace(b"element vertex 2562", b"element vertex 99999999999")
        if suffix == "ply"
        else b"f 1 2 99999999\n",
    }[damage]
    path.write_bytes(content)
    with pytest.raises(ScanError) as refusal:
        read_surface(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_several_bodies_points_and_strange_files(tmp_path: Path) -> None:
    scene = trimesh.Scene([sphere(), sphere().apply_translation([60, 0, 0])])
    scene.export(tmp_path / "two.obj")
    with pytest.raises(ScanError, match="2 separate shells"):
        read_surface(tmp_path / "two.obj")
    trimesh.PointCloud(sphere().vertices).export(tmp_path / "points.ply")
    with pytest.raises(ScanError, match="no faces"):
        read_surface(tmp_path / "points.ply")
    with pytest.raises(ScanError, match="not a surface file"):
        read_surface(tmp_path / "bone.xyz")
    with pytest.raises(ScanError, match="no such file"):
        read_surface(tmp_path / "none.ply")


@pytest.mark.real
def test_a_real_femur_is_accepted(real_data: Path) -> None:
    path = sorted((real_data / "smir_right_femora").glob("*.ply"))[0]
    mesh = read_surface(path)
    assert mesh.volume > 1e5
    assert check_surface(mesh, path) == []
