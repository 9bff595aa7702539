"""The scale object: drawn into a scan, found again in its X-rays."""

from __future__ import annotations

import numpy as np
import pytest

from osteoprint.ct.volume import Volume
from osteoprint.frames import Side, View, rigid
from osteoprint.xray.camera import Geometry, Pose, view_camera
from osteoprint.xray.materials import BODY
from osteoprint.xray.projector import path_lengths, prepare
from osteoprint.xray.radiograph import line_integrals
from osteoprint.xray.scale_object import (
    cube_to_world,
    free_place,
    measure_cube,
    object_size_mm,
    with_cube,
)

CONE = Geometry(160, 120, (0.7, 0.7), 1150.0, 1000.0)
PARALLEL = Geometry(160, 120, (0.6, 0.6), np.inf, np.inf)


def rod() -> Volume:
    """A rod of bone along the first axis, 60 mm long, 8 mm thick."""
    grid = np.full((60, 20, 20), -1000, np.int16)
    grid[2:58, 6:14, 6:14] = 1200
    matrix = np.eye(4)
    matrix[:3, 3] = -(np.array(grid.shape) - 1) / 2
    return Volume(grid, matrix)


def image(volume: Volume, camera) -> np.ndarray:
    return line_integrals(path_lengths(prepare(volume), camera), BODY, 140.0)


@pytest.mark.parametrize("geometry", [CONE, PARALLEL], ids=["cone", "parallel"])
@pytest.mark.parametrize("view", list(View))
@pytest.mark.parametrize("pose", [Pose(), Pose(17.0, 9.0, 5.0)], ids=["straight", "turned"])
def test_it_is_measured_to_within_one_percent(geometry, view, pose):
    scan = rod()
    camera = view_camera(np.eye(4), view, Side.RIGHT, geometry, pose)
    bare = image(scan, camera)
    true_px = 10.0 / geometry.spacing_at_bone_mm[0]
    place = free_place(bare, true_px)
    both = image(with_cube(scan, cube_to_world(camera, place), 10.0), camera)
    found = measure_cube(both, place, true_px)
    assert found.edge_px == pytest.approx(true_px, rel=0.01)
    assert np.hypot(*np.subtract(found.centre, place)) < 0.15
    # Nothing but the cube is new, and it stands free.
    new = both - bare > 0.5 * (both - bare).max()
    assert new.sum() == pytest.approx(true_px**2, rel=0.08)
    assert not (new & (bare > 1e-3)).any()


def test_drawing_keeps_the_mass_of_the_cube_and_the_rest_of_the_scan():
    scan = rod()
    to_world = rigid(np.eye(3), np.array([3.0, 40.0, -7.3]))
    drawn = with_cube(scan, to_world, 10.0)
    assert drawn.volume_hu.dtype == scan.volume_hu.dtype
    filled = (drawn.volume_hu.astype(float) + 1000).sum() - (
        scan.volume_hu.astype(float) + 1000
    ).sum()
    assert filled / 1000 == pytest.approx(1000.0, rel=0.01)
    low = np.round((drawn.world_to_voxel @ np.append(scan.voxel_to_world[:3, 3], 1))[:3]).astype(
        int
    )
    window = tuple(slice(a, a + n) for a, n in zip(low, scan.shape, strict=True))
    np.testing.assert_array_equal(drawn.volume_hu[window], scan.volume_hu)
    assert scan.volume_hu.max() == 1200


def test_no_room_and_no_cube_are_said():
    with pytest.raises(ValueError, match="no room"):
        free_place(np.ones((80, 60), np.float32), 10.0)
    with pytest.raises(ValueError, match="no scale object"):
        measure_cube(np.zeros((80, 60), np.float32), (40.0, 30.0), 10.0)


def test_small_animals_get_a_smaller_one():
    assert object_size_mm(450.0) == object_size_mm(100.0) == 10.0
    assert object_size_mm(15.0) == 1.5
