"""Distances with closed forms first; then against plain search, and on real bones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from osteoprint.errors import InputError
from osteoprint.shape.distance import (
    rms_between,
    surface_distance,
    surface_points,
    vertex_distances,
)
from osteoprint.shape.surface_index import SurfaceIndex


def ball(radius: float, subdivisions: int = 4) -> trimesh.Trimesh:
    return trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)


def soup(seed: int, count: int = 200) -> trimesh.Trimesh:
    corners = np.random.default_rng(seed).normal(0, 10, (count, 1, 3))
    corners = corners + np.random.default_rng(seed + 1).normal(0, 2, (count, 3, 3))
    faces = np.arange(3 * count).reshape(-1, 3)
    return trimesh.Trimesh(corners.reshape(-1, 3), faces, process=False)


def test_concentric_spheres_lie_the_difference_of_their_radii_apart() -> None:
    result = surface_distance(ball(10), ball(12))
    for figures in (result, result.estimate_to_truth, result.truth_to_estimate):
        for value in (figures.rms_mm, figures.mean_mm, figures.hd95_mm, figures.hausdorff_mm):
            assert value == pytest.approx(2.0, rel=0.005)


def test_a_small_box_in_a_large_one() -> None:
    rim = 3.0
    inner, outer = trimesh.creation.box([20, 20, 20]), trimesh.creation.box([20 + 2 * rim] * 3)
    result = surface_distance(inner, outer)
    assert result.estimate_to_truth.rms_mm == pytest.approx(rim, rel=1e-4)
    assert result.estimate_to_truth.hausdorff_mm == pytest.approx(rim)
    assert result.hausdorff_mm == pytest.approx(rim * np.sqrt(3))
    # From outside: faces at `rim`, a rim of width `rim` around each, where two offsets add up.
    along = np.linspace(0, rim, 2001)
    edge = np.trapezoid(np.sqrt(rim**2 + along**2), along)
    grid = np.sqrt(rim**2 + along[:, None] ** 2 + along[None, :] ** 2)
    corner = np.trapezoid(np.trapezoid(grid, along), along)
    mean = (20**2 * rim + 4 * 20 * edge + 4 * corner) / (20 + 2 * rim) ** 2
    assert result.truth_to_estimate.mean_mm == pytest.approx(mean, rel=0.002)


@pytest.mark.parametrize("shift", [0.01, 0.5, 4.0])
def test_a_shifted_box(shift: float) -> None:
    size = 10.0
    box = trimesh.creation.box([size] * 3)
    result = surface_distance(box.copy().apply_translation([shift, 0, 0]), box)
    area = 6 * size**2
    left = (size - 2 * shift) ** 2
    mean = shift * size**2 + shift * left + 2 * size * shift**2 - 8 * shift**3 / 3
    mean += 4 * size * shift**2 / 2
    square = shift**2 * size**2 + shift**2 * left + 4 * size * shift**3 / 3 - 2 * shift**4
    square += 4 * size * shift**3 / 3
    assert result.hausdorff_mm == pytest.approx(shift)
    assert result.mean_mm == pytest.approx(mean / area, rel=0.01)
    assert result.rms_mm == pytest.approx(np.sqrt(square / area), rel=0.01)
    # The other direction is the same by symmetry.
    there, back = result.estimate_to_truth, result.truth_to_estimate
    assert there.mean_mm == pytest.approx(back.mean_mm, rel=1e-4)


def test_a_slope_over_a_plane_gives_every_distance_the_same_area() -> None:
    height = 4.0
    slope = trimesh.Trimesh(
        [[0, 0, 0], [10, 0, height], [10, 6, height], [0, 6, 0]], [[0, 1, 2], [0, 2, 3]]
    )
    plane = trimesh.creation.box([100, 100, 2]).apply_translation([0, 0, -1])
    result = surface_distance(slope, plane).estimate_to_truth
    assert result.mean_mm == pytest.approx(height / 2, rel=1e-3)
    assert result.rms_mm == pytest.approx(height / np.sqrt(3), rel=1e-3)
    assert result.hd95_mm == pytest.approx(0.95 * height, rel=0.01)
    assert result.hausdorff_mm == pytest.approx(height)


def test_triangles_do_not_count_only_area_does() -> None:
    box, other = trimesh.creation.box([10, 20, 30]), ball(9)
    coarse = surface_distance(box, other)
    uneven = box
    for _ in range(5):
        corner = uneven.triangles_center[:, 2] > 14
        uneven = uneven.subdivide(np.flatnonzero(corner)) if corner.any() else uneven
    assert len(uneven.faces) > 40 * len(box.faces)
    fine = surface_distance(uneven, other)
    assert fine.rms_mm == pytest.approx(coarse.rms_mm, rel=2e-3)
    assert fine.mean_mm == pytest.approx(coarse.mean_mm, rel=2e-3)
    assert fine.hd95_mm == pytest.approx(coarse.hd95_mm, rel=0.01)


def test_symmetric_figures_pool_both_areas() -> None:
    first, second = ball(10), trimesh.creation.box([30, 30, 30])
    result = surface_distance(first, second)
    areas = np.array([first.area, second.area])
    directed = (result.estimate_to_truth, result.truth_to_estimate)
    square = areas @ [way.rms_mm**2 for way in directed] / areas.sum()
    assert result.rms_mm == pytest.approx(np.sqrt(square))
    assert result.mean_mm == pytest.approx(areas @ [way.mean_mm for way in directed] / areas.sum())
    assert result.hausdorff_mm == max(way.hausdorff_mm for way in directed)
    back = surface_distance(second, first)
    assert back.rms_mm == pytest.approx(result.rms_mm, rel=1e-12)
    assert back.hd95_mm == pytest.approx(result.hd95_mm, rel=1e-12)
    assert back.estimate_to_truth == result.truth_to_estimate


def test_relative_figures_and_json() -> None:
    result = surface_distance(ball(10), trimesh.creation.box([30, 40, 120]))
    assert result.diagonal_mm == pytest.approx(130.0)
    printed = result.to_json()
    assert list(printed) == [
        "rms_mm",
        "mean_mm",
        "hd95_mm",
        "hausdorff_mm",
        "rms_relative",
        "hausdorff_relative",
        "estimate_to_truth",
        "truth_to_estimate",
    ]
    assert printed["rms_relative"] == result.rms_mm / result.diagonal_mm
    assert printed["hausdorff_relative"] == result.hausdorff_mm / result.diagonal_mm
    ways = {"rms_mm", "mean_mm", "hd95_mm", "hausdorff_mm"}
    assert set(printed["truth_to_estimate"]) == ways
    assert all(type(value) is float for value in printed["estimate_to_truth"].values())


@pytest.mark.parametrize("place", [0.0, 900.0])
def test_a_surface_lies_exactly_nowhere_from_itself(place: float) -> None:
    mesh = ball(10)
    mesh.vertices = Rotation.from_rotvec([0.3, 0.5, 0.9]).apply(mesh.vertices)
    mesh.apply_translation([place, -place, place])
    result = surface_distance(mesh, mesh.copy())
    assert result.to_json()["estimate_to_truth"] == dict.fromkeys(
        ("rms_mm", "mean_mm", "hd95_mm", "hausdorff_mm"), 0.0
    )
    assert result.hausdorff_mm == 0.0
    assert (vertex_distances(mesh, mesh) == 0.0).all()


def test_a_rigid_motion_of_both_changes_nothing() -> None:
    first, second = soup(0), soup(5)
    motion = np.eye(4)
    motion[:3, :3] = Rotation.random(random_state=np.random.default_rng(3)).as_matrix()
    motion[:3, 3] = [100, -200, 300]
    before = surface_distance(first, second)
    after = surface_distance(first.apply_transform(motion), second.apply_transform(motion))
    assert after.rms_mm == pytest.approx(before.rms_mm, rel=1e-9)
    assert after.hausdorff_mm == pytest.approx(before.hausdorff_mm, rel=1e-9)


def test_the_nearest_point_is_the_one_a_plain_search_finds() -> None:
    mesh = soup(7)
    points = np.random.default_rng(9).normal(0, 15, (300, 3))
    index = SurfaceIndex.build(mesh)
    distances, nearest, faces = index.nearest(points)
    for point, distance, touch, face in zip(points, distances, nearest, faces, strict=True):
        plain = trimesh.triangles.closest_point(
            mesh.triangles, np.tile(point, (len(mesh.faces), 1))
        )
        gaps = np.linalg.norm(plain - point, axis=1)
        assert distance == pytest.approx(gaps.min(), abs=1e-12)
        assert gaps[face] == pytest.approx(distance, abs=1e-12)
        assert touch == pytest.approx(plain[face], abs=1e-9)
    hints = np.random.default_rng(1).integers(0, len(mesh.faces), len(points))
    assert np.array_equal(index.nearest(points, hints)[0], distances)


def test_many_points_in_threads_give_what_few_give() -> None:
    index = SurfaceIndex.build(ball(10))
    points = np.random.default_rng(0).normal(0, 10, (20_000, 3))
    whole = index.nearest(points)[0]
    parts = [index.nearest(part)[0] for part in np.array_split(points, 40)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_vertex_distances_follow_the_vertices() -> None:
    mesh = ball(10)
    mesh.vertices[17] *= 1.3
    distances = vertex_distances(mesh, ball(10))
    assert distances.shape == (len(mesh.vertices),)
    assert np.argmax(distances) == 17
    assert distances[17] == pytest.approx(3.0, rel=1e-3)
    assert np.delete(distances, 17) == pytest.approx(0.0, abs=1e-9)


def test_surface_points_lie_on_the_surface_evenly() -> None:
    mesh = trimesh.creation.box([2, 4, 8])
    points = surface_points(SurfaceIndex.build(mesh), 11_200)
    inside = np.array([1.0, 2.0, 4.0]) - np.abs(points)
    assert (inside > -1e-12).all()
    assert np.abs(inside).min(axis=1) == pytest.approx(0.0, abs=1e-12)
    on_face = np.isclose(inside, 0).sum(axis=0)
    assert on_face == pytest.approx(np.array([64, 32, 16]) * 100, abs=4)
    # Even within a face: its quarters hold a quarter each.
    top = points[np.isclose(points[:, 0], 1)]
    quarters = 2 * (top[:, 1] > 0) + (top[:, 2] > 0)
    assert np.bincount(quarters) == pytest.approx(np.full(4, 800), rel=0.02)


def test_rms_between_points_and_a_surface() -> None:
    first, second = SurfaceIndex.build(ball(10)), SurfaceIndex.build(ball(12))
    assert rms_between(surface_points(first, 500), second) == pytest.approx(2.0, rel=0.005)


def test_triangles_without_area_do_not_count() -> None:
    mesh = ball(10)
    spike = np.vstack([mesh.vertices, [[100.0, 0, 0]]])
    faces = np.vstack([mesh.faces, [[0, 0, len(spike) - 1], [1, 1, 1]]])
    result = surface_distance(trimesh.Trimesh(spike, faces, process=False), ball(10))
    assert result.hausdorff_mm == 0.0


def test_what_is_no_surface_is_refused() -> None:
    good = ball(10, 1)
    empty = trimesh.Trimesh()
    line = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [[0, 1, 2]], process=False)
    broken = good.copy()
    broken.vertices[3] = np.nan
    unnamed = trimesh.Trimesh(good.vertices, good.faces + 1000, process=False, validate=False)
    for bad in (empty, line, broken, unnamed):
        with pytest.raises(InputError, match="estimate"):
            surface_distance(bad, good)
        with pytest.raises(InputError, match="truth"):
            surface_distance(good, bad)
    with pytest.raises(InputError, match="points"):
        SurfaceIndex.build(good).nearest(np.array([[np.inf, 0, 0]]))


@pytest.mark.real
def test_real_bones_agree_with_dense_sampling(real_data: Path) -> None:
    folder = real_data / "vsd_femora"
    first, second = (trimesh.load(folder / f"z{n}.ply", process=False) for n in ("001_L", "013_L"))
    second.apply_translation(first.centroid - second.centroid)
    result = surface_distance(first, second)
    points = surface_points(SurfaceIndex.build(first), 200_000)
    dense = SurfaceIndex.build(second).nearest(points)[0]
    directed = result.estimate_to_truth
    assert directed.rms_mm == pytest.approx(np.sqrt(np.mean(dense**2)), rel=0.003)
    assert directed.mean_mm == pytest.approx(np.mean(dense), rel=0.003)
    assert directed.hd95_mm == pytest.approx(np.percentile(dense, 95), rel=0.01)
    assert directed.hausdorff_mm == pytest.approx(dense.max(), rel=0.01)


@pytest.mark.parametrize("spread_mm", [0.5, 5.0, 300.0])
def test_points_that_share_a_search_find_what_single_ones_find(spread_mm: float) -> None:
    mesh = ball(40, subdivisions=5)
    mesh.vertices *= 1 + 0.05 * np.sin(mesh.vertices.sum(axis=1, keepdims=True))
    index = SurfaceIndex.build(mesh)
    rng = np.random.default_rng(4)
    middles = np.repeat(rng.normal(0, 30, (40, 3)), 50, axis=0)
    points = middles + rng.normal(0, spread_mm, middles.shape)
    together = index.nearest(points)[0]
    # With hints every point is searched for by itself.
    singly = index.nearest(points, np.zeros(len(points), dtype=np.int64))[0]
    assert together == pytest.approx(singly, abs=1e-12)


def test_slivers_do_not_hide_what_is_nearer() -> None:
    sliver = [[-50.0, 0, 0], [50.0, 1e-9, 0], [50.0, 0, 0]]
    mesh = trimesh.Trimesh(
        [*sliver, [10, 5, -1], [12, 5, -1], [10, 7, -1]], [[0, 1, 2], [3, 4, 5]], process=False
    )
    points = np.random.default_rng(5).normal([10, 4, 0], 1.0, (64, 3))
    distances, nearest, _ = SurfaceIndex.build(mesh).nearest(points)
    to_line = np.hypot(points[:, 1], points[:, 2])
    to_other = np.linalg.norm(
        points - trimesh.triangles.closest_point(np.tile(mesh.triangles[1], (64, 1, 1)), points),
        axis=1,
    )
    assert distances == pytest.approx(np.minimum(to_line, to_other), abs=1e-8)
    assert np.linalg.norm(points - nearest, axis=1) == pytest.approx(distances, abs=1e-12)
