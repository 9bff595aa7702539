"""Cameras: the directions of the standard views, and projection against plain geometry."""

from __future__ import annotations

import numpy as np
import pytest

from osteoprint.frames import Side, View, rigid
from osteoprint.xray.camera import (
    Camera,
    Geometry,
    Pose,
    camera_from_calibration,
    standard_view,
    view_camera,
)

GEOMETRY = Geometry(81, 41, (0.5, 0.5), 1150.0, 1000.0)


def test_a_standard_view_is_a_rotation_for_every_view_and_side():
    for view in View:
        for side in Side:
            rotation = standard_view(view, side)
            np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-15)
            assert np.linalg.det(rotation) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("view", "side", "point", "row", "column"),
    [
        # x is proximal, y the patient's right, z the front.
        (View.AP, Side.RIGHT, (10, 0, 0), -1, 0),  # proximal is up
        (View.AP, Side.RIGHT, (0, -10, 0), 0, 1),  # medial of a right bone: image right
        (View.AP, Side.LEFT, (0, 10, 0), 0, -1),  # medial of a left bone: image left
        (View.ML, Side.RIGHT, (0, 0, 10), 0, -1),  # front of a right bone: image left
        (View.ML, Side.LEFT, (0, 0, 10), 0, 1),  # front of a left bone: image right
    ],
)
def test_directions_in_the_image(view, side, point, row, column):
    camera = view_camera(np.eye(4), view, side, GEOMETRY)
    found = camera.project(np.array([point], dtype=float))[0] - camera.principal_point
    assert np.sign(np.round(found, 9)).tolist() == [row, column]


def test_the_bones_middle_is_magnified_by_sdd_over_sod():
    camera = view_camera(np.eye(4), View.AP, Side.RIGHT, GEOMETRY)
    found = camera.project(np.array([[0.0, -10.0, 0.0]]))[0] - camera.principal_point
    assert found[1] == pytest.approx(10.0 * 1.15 / 0.5)
    assert GEOMETRY.spacing_at_bone_mm[0] == pytest.approx(0.5 / 1.15)


def test_nearer_to_the_source_is_larger_in_a_cone_and_not_in_a_parallel_beam():
    near = np.array([[0.0, -10.0, 100.0]])  # towards the front, where the AP source stands
    far = near * [1, 1, -1]
    cone = view_camera(np.eye(4), View.AP, Side.RIGHT, GEOMETRY)
    assert cone.project(near)[0, 1] > cone.project(far)[0, 1]
    parallel = Geometry(81, 41, (0.5, 0.5), np.inf, np.inf)
    flat = view_camera(np.eye(4), View.AP, Side.RIGHT, parallel)
    np.testing.assert_allclose(flat.project(near), flat.project(far))


def test_pose_angles_turn_what_they_say():
    tipped = view_camera(np.eye(4), View.AP, Side.RIGHT, GEOMETRY, Pose(in_plane_deg=30))
    top = tipped.project(np.array([[100.0, 0.0, 0.0]]))[0] - tipped.principal_point
    # A positive turn about the beam (into the picture) is clockwise as seen.
    assert np.rad2deg(np.arctan2(top[1], -top[0])) == pytest.approx(30.0)
    turned = view_camera(np.eye(4), View.AP, Side.RIGHT, GEOMETRY, Pose(long_deg=90))
    np.testing.assert_allclose(
        turned.project(np.array([[100.0, 0.0, 0.0]]))[0, 1], turned.principal_point[1], atol=1e-9
    )
    tilted = view_camera(np.eye(4), View.AP, Side.RIGHT, GEOMETRY, Pose(tilt_deg=60))
    ends = tilted.project(np.array([[1.0, 0, 0], [-1.0, 0, 0]]))
    assert ends[1, 0] - ends[0, 0] == pytest.approx(2 * 0.5 * 1.15 / 0.5, rel=1e-3)


def test_shift_moves_the_bone_in_its_own_plane():
    camera = view_camera(np.eye(4), View.ML, Side.LEFT, GEOMETRY, Pose(shift_mm=(3.0, -4.0)))
    found = camera.project(np.zeros((1, 3)))[0] - camera.principal_point
    np.testing.assert_allclose(found, np.array([-4.0, 3.0]) * 1.15 / 0.5)


def test_detector_plane_and_projection_agree():
    bone = rigid(standard_view(View.ML, Side.LEFT), np.array([5.0, -3.0, 700.0]))
    for geometry in (GEOMETRY, Geometry(81, 41, (0.4, 0.6), np.inf, np.inf)):
        camera = view_camera(bone, View.AP, Side.RIGHT, geometry, Pose(10, 20, 5, (3.0, 1.0)))
        first, down, right = camera.detector_plane()
        pixel = first + 7 * down + 11 * right
        np.testing.assert_allclose(camera.project(pixel[None])[0], [7, 11], atol=1e-9)


def test_calibration_projects_as_k_r_t_do():
    k = np.array([[8000.0, 0, 800], [0, 8100, 850], [0, 0, 1]])
    r = standard_view(View.ML, Side.RIGHT)
    t = np.array([10.0, -20.0, 1300.0])
    camera = camera_from_calibration(k, r, t, rows=1760, columns=1700)
    points = np.random.default_rng(0).uniform(-50, 50, (20, 3))
    u, v, w = k @ (r @ points.T + t[:, None])
    np.testing.assert_allclose(camera.project(points), np.stack([v / w, u / w], 1), rtol=1e-10)


@pytest.mark.parametrize(
    "bad",
    [
        {"r": np.diag([1.0, 1.0, -1.0])},
        {"r": 2 * np.eye(3)},
        {"k": np.diag([-1.0, 1, 1])},
        {"t_mm": np.zeros(2)},
    ],
)
def test_a_calibration_that_cannot_be_is_refused(bad):
    good = {"k": np.diag([100.0, 100, 1]), "r": np.eye(3), "t_mm": np.array([0, 0, 50.0])}
    with pytest.raises(ValueError, match=r"rotation|focal|needs"):
        camera_from_calibration(**{**good, **bad}, rows=10, columns=10)


@pytest.mark.parametrize(
    "bad",
    [
        {"rows": 0},
        {"pixel_spacing_mm": (0.0, 1.0)},
        {"sdd_mm": np.inf},
        {"sod_mm": 2000.0},
    ],
)
def test_a_geometry_that_cannot_be_is_refused(bad):
    good = {"rows": 4, "columns": 4, "pixel_spacing_mm": (1.0, 1.0)}
    with pytest.raises(ValueError, match=r"needs|finite|between"):
        Geometry(**{**good, **bad})


def test_camera_to_world_and_back():
    camera = view_camera(np.eye(4), View.AP, Side.LEFT, GEOMETRY, Pose(3, 4, 5, (1, 2)))
    np.testing.assert_allclose(
        camera.camera_to_world @ camera.world_to_camera, np.eye(4), atol=1e-9
    )
    assert isinstance(camera, Camera)
