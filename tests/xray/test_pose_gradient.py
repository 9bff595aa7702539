"""Derivatives with respect to the pose, against finite differences."""

from __future__ import annotations

import numpy as np
import pytest

from osteoprint.ct.volume import Volume
from osteoprint.frames import Side, View, rigid
from osteoprint.xray.camera import Geometry, Pose, view_camera
from osteoprint.xray.materials import BODY
from osteoprint.xray.pose_gradient import at_pose, image_and_gradient, motion
from osteoprint.xray.projector import path_lengths, prepare
from osteoprint.xray.radiograph import line_integrals

CONE = Geometry(40, 30, (2.0, 2.0), 1150.0, 1000.0)
PARALLEL = Geometry(40, 30, (2.0, 2.0), np.inf, np.inf)
MU = BODY.mu_per_mm(70.0)


def smooth_scan(shape=(40, 36, 44), spacing=(1.5, 1.2, 1.0)) -> Volume:
    """Lumps of tissue and bone without edges, in air."""
    rng = np.random.default_rng(6)
    x = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1) * spacing
    hu = np.zeros(shape)
    for _ in range(12):
        middle = rng.uniform(0.3, 0.7, 3) * shape * spacing
        hu += rng.uniform(500, 1600) * np.exp(-((x - middle) ** 2).sum(-1) / (2 * 6.0**2))
    matrix = np.diag([*spacing, 1.0])
    matrix[:3, 3] = -np.array(shape) * spacing / 2
    return Volume((hu - 1000.0).astype(np.float32), matrix)


@pytest.mark.parametrize("geometry", [CONE, PARALLEL], ids=["cone", "parallel"])
@pytest.mark.parametrize("cache_mb", [96.0, 0.05], ids=["whole", "slabs"])
def test_derivatives_are_those_of_finite_differences(geometry, cache_mb):
    traced = prepare(smooth_scan(), BODY, cache_mb=cache_mb)
    centre = np.array([3.0, -5.0, 4.0])
    start = motion(np.array([0.1, -0.2, 0.15, 2.0, -1.0, 3.0]), np.zeros(3))
    camera = view_camera(np.eye(4), View.AP, Side.RIGHT, geometry, Pose(20.0, 10.0, 5.0))
    _, found = image_and_gradient(traced, camera, MU, centre, start)

    def image(parameters: np.ndarray) -> np.ndarray:
        moved = at_pose(traced, motion(parameters, centre) @ start)
        return line_integrals(path_lengths(moved, camera), BODY, 70.0).astype(float)

    for k in range(6):
        step = np.zeros(6)
        step[k] = 2e-3 if k < 3 else 0.05
        truth = (image(step) - image(-step)) / (2 * step[k])
        assert np.abs(truth).max() > 0
        error = np.sqrt(((found[k] - truth) ** 2).mean() / (truth**2).mean())
        assert error < 0.02, k


@pytest.mark.parametrize("geometry", [CONE, PARALLEL], ids=["cone", "parallel"])
def test_the_image_is_the_projectors(geometry):
    traced = prepare(smooth_scan(), BODY)
    for view in View:
        camera = view_camera(np.eye(4), view, Side.LEFT, geometry, Pose(20.0, 10.0, 5.0))
        image, _ = image_and_gradient(traced, camera, MU, np.zeros(3))
        truth = line_integrals(path_lengths(traced, camera), BODY, 70.0)
        np.testing.assert_allclose(image, truth, atol=2e-5 * truth.max())


def test_a_shift_along_a_parallel_beam_changes_nothing():
    traced = prepare(smooth_scan(), BODY)
    camera = view_camera(np.eye(4), View.AP, Side.RIGHT, PARALLEL)
    image, gradient = image_and_gradient(traced, camera, MU, np.zeros(3))
    along = np.tensordot(camera.camera_to_world[:3, 2], gradient[3:], axes=1)
    assert np.abs(along).max() < 1e-6
    across = np.tensordot(camera.camera_to_world[:3, 0], gradient[3:], axes=1)
    assert np.abs(across).max() > 0.01 * image.max()


def test_moving_the_scan_is_moving_its_matrix():
    scan = smooth_scan()
    pose = motion(np.array([0.3, 0.1, -0.2, 5.0, 6.0, 7.0]), np.array([1.0, 2.0, 3.0]))
    camera = view_camera(rigid(np.eye(3), np.array([5.0, 6.0, 7.0])), View.ML, Side.LEFT, CONE)
    one = path_lengths(at_pose(prepare(scan), pose), camera)
    two = path_lengths(prepare(Volume(scan.volume_hu, pose @ scan.voxel_to_world)), camera)
    np.testing.assert_allclose(one, two, atol=1e-4 * two.max())


def test_weights_must_be_one_to_a_material():
    traced = prepare(smooth_scan(), BODY)
    camera = view_camera(np.eye(4), View.AP, Side.RIGHT, CONE)
    with pytest.raises(ValueError, match="2 weights for 3"):
        image_and_gradient(traced, camera, np.ones(2), np.zeros(3))
