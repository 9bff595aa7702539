"""Path lengths: one voxel, a sphere, a box, against formulas and against the slow reference."""

from __future__ import annotations

import numpy as np
import pytest

from osteoprint.ct.volume import Volume
from osteoprint.frames import Side, View, rigid
from osteoprint.xray.camera import Camera, Geometry, Pose, view_camera
from osteoprint.xray.materials import CORTICAL_BONE, SOFT_TISSUE, Material, MaterialTable
from osteoprint.xray.projector import path_lengths, path_lengths_reference, prepare

ONE = MaterialTable((Material("bone", 1000.0, 1.92, tuple(CORTICAL_BONE.items())),))
TWO = MaterialTable(
    (
        Material("soft tissue", 0.0, 1.06, tuple(SOFT_TISSUE.items())),
        Material("bone", 1000.0, 1.92, tuple(CORTICAL_BONE.items())),
    )
)
CONE = Geometry(90, 70, (1.0, 1.0), 1150.0, 1000.0)
PARALLEL = Geometry(90, 70, (1.0, 1.0), np.inf, np.inf)


def sphere(radius: float, spacing: tuple[float, float, float], rotation=None) -> Volume:
    """A ball of 1000 HU around the origin, with the share of each voxel by supersampling."""
    counts = np.ceil(2 * (radius + 3) / np.array(spacing)).astype(int)
    fine = 4
    axes = [
        ((np.arange(n * fine) + 0.5) / fine - n / 2) * s
        for n, s in zip(counts, spacing, strict=True)
    ]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    inside = (x * x + y * y + z * z <= radius * radius).astype(np.float32)
    i, j, k = counts
    share = inside.reshape(i, fine, j, fine, k, fine).mean(axis=(1, 3, 5))
    matrix = np.diag([*spacing, 1.0])
    matrix[:3, 3] = -(counts - 1) / 2 * spacing
    if rotation is not None:
        matrix = rigid(rotation, np.zeros(3)) @ matrix
    return Volume(-1000.0 + 2000.0 * share, matrix)


def chord(camera: Camera, radius: float) -> np.ndarray:
    """(rows, columns) length of each ray inside a ball around the origin."""
    first, down, right = camera.detector_plane()
    r, c = np.mgrid[: camera.geometry.rows, : camera.geometry.columns]
    pixel = first + r[..., None] * down + c[..., None] * right
    if camera.is_parallel:
        origin, ray = pixel, np.broadcast_to(camera.camera_to_world[:3, 2], pixel.shape)
    else:
        origin = np.broadcast_to(camera.camera_to_world[:3, 3], pixel.shape)
        ray = pixel - origin
        ray = ray / np.linalg.norm(ray, axis=-1, keepdims=True)
    b = (origin * ray).sum(-1)
    return 2 * np.sqrt(np.clip(b * b - (origin**2).sum(-1) + radius**2, 0, None))


@pytest.mark.parametrize("geometry", [CONE, PARALLEL], ids=["cone", "parallel"])
@pytest.mark.parametrize("pose", [Pose(), Pose(37.0, 20.0, 41.0)], ids=["straight", "tilted"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.0, 1.4)], ids=["iso", "aniso"])
def test_a_sphere_is_as_thick_as_its_chords(geometry, pose, spacing):
    camera = view_camera(np.eye(4), View.AP, Side.RIGHT, geometry, pose)
    found = path_lengths(prepare(sphere(30.0, spacing), ONE), camera)[0]
    truth = chord(camera, 30.0)
    inside = truth > 0.2 * truth.max()
    assert np.abs(found - truth)[inside].mean() / truth[inside].mean() < 0.005
    assert found.sum() == pytest.approx(truth.sum(), rel=0.003)
    assert found[truth == 0].max() < 8.0  # only the rim's voxels spill over


def test_one_voxel_has_its_own_volume():
    grid = np.full((3, 3, 3), -1000.0, np.float32)
    grid[1, 1, 1] = 1000.0
    volume = Volume(grid, np.diag([2.0, 3.0, 4.0, 1.0]))
    geometry = Geometry(400, 400, (0.05, 0.05), np.inf, np.inf)
    world = rigid(np.eye(3), np.array([2.0, 3.0, 4.0]))
    for view in View:
        camera = view_camera(world, view, Side.RIGHT, geometry)
        found = path_lengths(prepare(volume, ONE), camera)[0]
        assert found.sum() * 0.05**2 == pytest.approx(2 * 3 * 4, rel=1e-3)


def test_a_box_along_the_beam_is_as_thick_as_it_is_deep():
    grid = np.full((20, 20, 20), -1000.0, np.float32)
    grid[4:16, 4:16, 4:16] = 1000.0
    matrix = np.diag([1.5, 1.0, 0.5, 1.0])
    matrix[:3, 3] = -9.5 * np.array([1.5, 1.0, 0.5])
    traced = prepare(Volume(grid, matrix), ONE)
    geometry = Geometry(5, 5, (1.0, 1.0), np.inf, np.inf)
    for view, depth in ((View.AP, 12 * 0.5), (View.ML, 12 * 1.0)):
        camera = view_camera(np.eye(4), view, Side.RIGHT, geometry)
        np.testing.assert_allclose(path_lengths(traced, camera)[0], depth, rtol=1e-5)


@pytest.mark.parametrize("geometry", [CONE, PARALLEL], ids=["cone", "parallel"])
def test_fast_and_reference_agree_on_noise(geometry):
    rng = np.random.default_rng(5)
    grid = rng.uniform(-1200, 1800, (17, 13, 11)).astype(np.float32)
    matrix = np.diag([2.0, 3.0, 2.5, 1.0])
    matrix[:3, 3] = -(np.array(grid.shape) - 1) / 2 * [2.0, 3.0, 2.5]
    traced = prepare(Volume(grid, matrix), TWO)
    for pose in (Pose(), Pose(80, 5, 3), Pose(15, -60, 50, (2.0, 1.0))):
        camera = view_camera(np.eye(4), View.ML, Side.LEFT, geometry, pose)
        fast, slow = path_lengths(traced, camera), path_lengths_reference(traced, camera)
        np.testing.assert_allclose(fast, slow, atol=2e-3 * slow.max())
        assert slow.max() > 5


def table(count: int) -> MaterialTable:
    """As many materials, 400 HU apart from 0 HU."""
    return MaterialTable(
        tuple(
            Material(f"material {m}", 400.0 * m, 1.0, tuple(SOFT_TISSUE.items()))
            for m in range(count)
        )
    )


@pytest.mark.parametrize("count", [1, 3, 4, 7])
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_any_table_in_one_pass_and_any_type_of_grid(count, dtype):
    rng = np.random.default_rng(11)
    grid = rng.uniform(-1100, 4000, (40, 50, 37)).astype(dtype)
    traced = prepare(Volume(grid, np.diag([1.0, 1.0, 1.0, 1.0])), table(count))
    world = rigid(np.eye(3), np.array([20.0, 25.0, 18.0]))
    camera = view_camera(world, View.AP, Side.RIGHT, CONE, Pose(20.0, 10.0, 5.0))
    fast, slow = path_lengths(traced, camera), path_lengths_reference(traced, camera)
    assert fast.shape == (count, 90, 70)
    np.testing.assert_allclose(fast, slow, atol=1e-3 * slow.max())


def test_more_materials_than_can_be_traced_are_refused():
    traced = prepare(Volume(np.zeros((4, 4, 4), np.int16), np.eye(4)), table(8))
    with pytest.raises(ValueError, match="7 materials"):
        path_lengths(traced, view_camera(np.eye(4), View.AP, Side.RIGHT, CONE))


def test_a_scan_turned_in_slabs_gives_the_same_as_one_turned_whole():
    rng = np.random.default_rng(2)
    grid = np.where(rng.random((150, 140, 160)) < 0.05, 1500, -1000).astype(np.int16)
    volume = Volume(grid, np.diag([0.5, 0.5, 0.5, 1.0]))
    world = rigid(np.eye(3), np.array([37.0, 35.0, 40.0]))
    whole, slabs = prepare(volume, TWO), prepare(volume, TWO, cache_mb=3.0)
    for view in View:
        camera = view_camera(world, view, Side.RIGHT, CONE, Pose(7.0, 12.0, 9.0))
        a, b = path_lengths(whole, camera), path_lengths(slabs, camera)
        assert len(list(slabs.layouts(0))) > 2
        np.testing.assert_allclose(a, b, atol=1e-4 * a.max())


def test_air_between_things_is_skipped_and_nothing_else():
    """Specks far apart: every one is found, wherever it lies among the blocks."""
    rng = np.random.default_rng(4)
    grid = np.full((90, 100, 110), -1000.0, np.float32)
    grid[tuple(rng.integers(0, n, 60) for n in grid.shape)] = 1000.0
    grid[[0, 89], [0, 99], [0, 109]] = 1000.0
    traced = prepare(Volume(grid, np.eye(4)), ONE)
    world = rigid(np.eye(3), np.array([45.0, 50.0, 55.0]))
    for geometry in (CONE, PARALLEL):
        for pose in (Pose(), Pose(30.0, 25.0, 35.0), Pose(45.0, 0.0, 44.0)):
            camera = view_camera(world, View.ML, Side.RIGHT, geometry, pose)
            fast, slow = path_lengths(traced, camera), path_lengths_reference(traced, camera)
            np.testing.assert_allclose(fast, slow, atol=2e-3)
            assert slow.max() > 0.1  # a speck is a cell wide: something is seen


def test_a_scan_can_be_sent_to_another_process():
    import pickle

    traced = prepare(sphere(10.0, (1.0, 1.0, 1.0)), ONE)
    camera = view_camera(np.eye(4), View.AP, Side.RIGHT, CONE)
    before = path_lengths(traced, camera)
    sent = pickle.loads(pickle.dumps(traced))
    assert not sent.kept.by_axis
    np.testing.assert_array_equal(path_lengths(sent, camera), before)


def test_materials_share_a_mixture_and_denser_than_the_last_counts_more():
    shares = TWO.fractions(np.array([-1000.0, -500.0, 0.0, 250.0, 1000.0, 1500.0]))
    np.testing.assert_allclose(
        shares, [[0, 0], [0.5, 0], [1, 0], [0.75, 0.25], [0, 1], [0, 1.5]], atol=1e-12
    )


def test_nothing_of_an_empty_scan():
    traced = prepare(Volume(np.full((4, 4, 4), -1000, np.int16), np.eye(4)), TWO)
    camera = view_camera(np.eye(4), View.AP, Side.RIGHT, CONE)
    assert not path_lengths(traced, camera).any()


def test_moving_scan_and_camera_together_changes_nothing():
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    rotation *= np.linalg.det(rotation)
    still, moved = sphere(12.0, (1.0, 1.2, 0.8)), sphere(12.0, (1.0, 1.2, 0.8), rotation)
    pose = Pose(10.0, 20.0, 5.0)
    one = view_camera(np.eye(4), View.AP, Side.RIGHT, CONE, pose)
    two = view_camera(rigid(rotation, np.zeros(3)), View.AP, Side.RIGHT, CONE, pose)
    a, b = path_lengths(prepare(still, ONE), one), path_lengths(prepare(moved, ONE), two)
    np.testing.assert_allclose(a, b, atol=1e-3 * a.max())


def test_materials_must_rise():
    with pytest.raises(ValueError, match="rising"):
        MaterialTable((TWO.materials[1], TWO.materials[0]))


@pytest.mark.parametrize(
    ("energy_kev", "cortical", "soft"),
    # NIST (NISTIR 5632), mass attenuation of ICRU-44 cortical bone and soft tissue, cm²/g.
    [(60, 0.3148, 0.2048), (80, 0.2229, 0.1823), (100, 0.1855, 0.1693), (150, 0.1480, 0.1492)],
)
def test_attenuation_is_that_of_nist(energy_kev, cortical, soft):
    assert TWO.materials[1].mu_per_mm(energy_kev) == pytest.approx(cortical * 1.92 / 10, rel=0.005)
    assert TWO.materials[0].mu_per_mm(energy_kev) == pytest.approx(soft * 1.06 / 10, rel=0.005)


def test_an_energy_off_the_tables_is_refused():
    with pytest.raises(ValueError, match="energy_kev"):
        TWO.mu_per_mm(1.0)
