"""Registration finds a bone whose pose in the films is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from osteoprint.ct.volume import Volume
from osteoprint.frames import Side, View
from osteoprint.xray.camera import Geometry, view_camera
from osteoprint.xray.film_view import FilmView, at_pixel_size, cropped, without_metal
from osteoprint.xray.materials import BODY
from osteoprint.xray.pose_gradient import motion
from osteoprint.xray.projector import prepare
from osteoprint.xray.registration import (
    Settings,
    correlations,
    local_contrast,
    refine,
    register,
    simulated,
)

GEOMETRY = Geometry(260, 220, (0.5, 0.5), 1150.0, 1000.0)
CAMERAS = [view_camera(np.eye(4), view, Side.RIGHT, GEOMETRY) for view in (View.AP, View.ML)]
TRUTH = motion(np.array([0.2, -0.3, 0.5, 4.0, -3.0, 5.0]), np.zeros(3))
QUICK = Settings(pixels_mm=(2.4, 1.2, 0.6), candidates=60, kept=4, blur_mm=0.3)


def tube(seed: int = 3) -> Volume:
    """A bent tube of cortex with a knob, in air: no symmetry to get lost in."""
    rng = np.random.default_rng(seed)
    x, y, z = np.stack(np.meshgrid(*[np.arange(n) - n / 2 for n in (50, 46, 80)], indexing="ij"))
    bend = 6 * np.sin(z / 30 + rng.random())
    wide = 9 + 4 * (z / 40) ** 2 + 3 * np.cos(np.arctan2(y, x - bend) + z / 25)
    radius = np.hypot(x - bend, y * 1.25)
    hu = np.where(radius < wide, np.where(radius > wide - 3, 1300.0, 150.0), -1000.0)
    knob = np.sqrt((x - 12 - bend) ** 2 + (y + 5) ** 2 + (z - 22) ** 2)
    hu[knob < 7] = 900.0
    hu[:, :, np.abs(z[0, 0]) > 36] = -1000.0
    spots = np.where(hu > 0, 150 * gaussian_filter(rng.standard_normal(hu.shape), 1.5) * 8, 0)
    upright = np.ascontiguousarray((gaussian_filter(hu, 0.7) + spots).transpose(2, 1, 0))
    matrix = np.diag([0.8, 0.8, 0.8, 1.0])
    matrix[:3, 3] = -np.array(upright.shape) * 0.4
    return Volume(upright.astype(np.float32), matrix)


@pytest.fixture(scope="module")
def bone():
    return prepare(tube(), BODY)


def films(traced, pose=TRUTH, seed: int = 0, noise: float = 0.015) -> list[FilmView]:
    """What two cameras saw: the bone, a slope of soft tissue, unsharpness and noise."""
    rng = np.random.default_rng(seed)
    out = []
    for camera in CAMERAS:
        image = gaussian_filter(simulated(traced, camera, pose, 60.0), 0.6)
        rows, columns = np.indices(image.shape) / 200
        image = image + 0.8 + 0.3 * rows - 0.2 * columns + noise * rng.standard_normal(image.shape)
        out.append(FilmView(image.astype(np.float32), camera, np.ones(image.shape, bool)))
    return out


def apart(one, other) -> tuple[float, float]:
    turn = Rotation.from_matrix(one[:3, :3] @ other[:3, :3].T).magnitude()
    return np.rad2deg(turn), float(np.linalg.norm(one[:3, 3] - other[:3, 3]))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_start_ten_degrees_and_ten_mm_off_is_brought_home(bone, seed):
    rng = np.random.default_rng(seed)
    turn, shift = rng.standard_normal((2, 3))
    away = np.concatenate(
        [np.deg2rad(10) * turn / np.linalg.norm(turn), 10 * shift / np.linalg.norm(shift)]
    )
    start = motion(away, TRUTH[:3, 3]) @ TRUTH
    found = register(bone, films(bone), start, rng, QUICK)
    degrees, mm = apart(found.pose, TRUTH)
    assert degrees < 0.25  # about a tube 20 mm wide, under noise
    assert mm < 0.1
    assert min(found.correlations) > 0.9


def test_without_noise_the_pose_is_found_to_hundredths(bone):
    start = motion(np.array([0.02, -0.02, 0.03, 1.0, -1.0, 0.5]), TRUTH[:3, 3]) @ TRUTH
    degrees, mm = apart(refine(bone, films(bone, noise=0.0), start, QUICK).pose, TRUTH)
    assert degrees < 0.03
    assert mm < 0.02


def test_refining_climbs_and_leaves_a_perfect_pose_alone(bone):
    views = films(bone)
    start = motion(np.array([0.02, -0.02, 0.03, 1.0, -1.0, 0.5]), TRUTH[:3, 3]) @ TRUTH
    before = np.mean(correlations(bone, views, start, QUICK))
    found = refine(bone, views, start, QUICK)
    assert found.score > before
    again = refine(bone, views, found.pose, QUICK)
    degrees, mm = apart(again.pose, found.pose)
    assert degrees < 0.02
    assert mm < 0.02


def test_a_second_bone_in_the_way_is_understood_once_it_is_known(bone):
    other = prepare(tube(8), BODY)
    beside = motion(np.array([0.0, 0.1, 1.0, 3.0, 16.0, -12.0]), np.zeros(3)) @ TRUTH
    shadows = [simulated(other, camera, beside, 60.0) for camera in CAMERAS]
    both = [
        FilmView(view.image + gaussian_filter(shadow, 0.6), view.camera, view.field)
        for view, shadow in zip(films(bone), shadows, strict=True)
    ]
    known = [
        FilmView(view.image, view.camera, view.field, shadow)
        for view, shadow in zip(both, shadows, strict=True)
    ]
    blind = correlations(bone, both, TRUTH, QUICK)
    seeing = correlations(bone, known, TRUTH, QUICK)
    assert min(np.subtract(seeing, blind)) > 0.02
    start = motion(np.array([0.02, -0.02, 0.03, 1.0, -1.0, 0.5]), TRUTH[:3, 3]) @ TRUTH
    degrees, mm = apart(refine(bone, known, start, QUICK).pose, TRUTH)
    assert degrees < 0.25  # about a tube 20 mm wide, under noise
    assert mm < 0.1


def test_beads_are_taken_out_of_the_field_and_edges_stay(bone):
    view = films(bone)[0]
    image, beads = view.image.copy(), [(60, 110), (130, 100), (190, 150)]
    rows, columns = np.indices(image.shape)
    for row, column in beads:
        image[np.hypot(rows - row, columns - column) < 1.5] += 1.5
    cleaned = without_metal(FilmView(image, view.camera, view.field), 0.435)
    lost = ~cleaned.field
    assert all(lost[row, column] for row, column in beads)
    near = np.min([np.hypot(rows - r, columns - c) for r, c in beads], axis=0) < 8
    assert lost[~near].mean() < 0.001


def test_a_smaller_film_and_a_part_of_it_show_the_same_place():
    rng = np.random.default_rng(0)
    image = rng.random((260, 220)).astype(np.float32)
    view = FilmView(image, CAMERAS[1], np.ones(image.shape, bool), others=2 * image)
    part = cropped(at_pixel_size(view, 3), 10, 60, 5, 70)
    point = np.array([[6.0, -9.0, 4.0]])
    whole = CAMERAS[1].project(point)[0]
    assert part.camera.project(point)[0] == pytest.approx((whole - 1) / 3 - [10, 5], abs=1e-9)
    assert part.image[0, 0] == pytest.approx(image[30:33, 15:18].mean(), rel=1e-5)
    assert part.others is not None
    assert np.allclose(part.others, 2 * part.image)


def test_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match="differ"):
        FilmView(np.zeros((4, 4), np.float32), CAMERAS[0], np.ones((4, 4), bool))


def test_local_contrast_ignores_exposure():
    rng = np.random.default_rng(0)
    image = gaussian_filter(rng.standard_normal((60, 60)), 2).astype(np.float32)
    assert local_contrast(3 * image + 7, 5.0) == pytest.approx(local_contrast(image, 5.0), abs=1e-4)
