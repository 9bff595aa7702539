"""Line integrals of a surface, and how they change with it: against formulas and differences."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from scipy.ndimage import gaussian_filter

from osteoprint.frames import Side, View
from osteoprint.reconstruct.shadow import Projection, change, line_integrals
from osteoprint.xray.camera import Geometry, view_camera

RADIUS = 40.0
SPHERE = trimesh.creation.icosphere(4, radius=RADIUS)
FACES = np.asarray(SPHERE.faces, np.int64)
GEOMETRY = Geometry(150, 150, (1.0, 1.0), 1150.0, 1000.0)


def projection(geometry: Geometry = GEOMETRY) -> Projection:
    return Projection.of(view_camera(np.eye(4), View.AP, Side.RIGHT, geometry))


def ones() -> np.ndarray:
    return np.ones(len(SPHERE.vertices))


def chords(geometry: Geometry = GEOMETRY) -> np.ndarray:
    """Way through the sphere of the ray to each pixel."""
    y, x = (np.mgrid[: geometry.rows, : geometry.columns] - 74.5) / geometry.sdd_mm
    ray = np.stack([x, y, np.ones_like(x)], axis=-1)
    along = ray @ [0, 0, geometry.sod_mm] / np.linalg.norm(ray, axis=-1)
    return 2 * np.sqrt(np.maximum(RADIUS**2 - geometry.sod_mm**2 + along**2, 0.0))


def test_a_sphere_has_its_chords():
    view = projection()
    image = line_integrals(view.to_camera(SPHERE.vertices), FACES, ones(), view)
    true = chords()
    deep = true > 20
    assert np.abs(image - true)[deep].max() < 0.5
    assert image.sum() == pytest.approx(true.sum(), rel=0.005)
    assert np.abs(image[true == 0]).max() < 1e-3


def test_nested_surfaces_add_up():
    view = projection()
    outer = line_integrals(view.to_camera(SPHERE.vertices), FACES, 2 * ones(), view)
    inner = line_integrals(view.to_camera(0.5 * SPHERE.vertices), FACES, -1 * ones(), view)
    shell, core = (outer + inner)[75, 75], 2 * 2 * RADIUS - RADIUS
    assert shell == pytest.approx(core, rel=0.01)


def test_a_surface_outside_of_the_picture_adds_nothing():
    view = projection()
    image = line_integrals(
        view.to_camera(np.add(SPHERE.vertices, [0, 500.0, 0])), FACES, ones(), view
    )
    assert not image.any()


def motions(view: Projection) -> np.ndarray:
    """(4, n, 3): right, down, along the beam, and growing, in camera axes."""
    count = len(SPHERE.vertices)
    straight = [np.tile(axis, (count, 1)) for axis in np.eye(3)]
    return np.stack([*straight, SPHERE.vertices @ view.rotation.T / RADIUS])


@pytest.mark.parametrize("which", range(4))
def test_changes_are_those_of_finite_differences(which):
    view = projection()
    points, motion = view.to_camera(SPHERE.vertices), motions(view)[which]
    changed = change(points, FACES, ones(), view, motion[..., None])[..., 0]
    step = 0.1
    there, back = (
        line_integrals(points + sign * step * motion, FACES, ones(), view) for sign in (1, -1)
    )
    # Pixels near the outline jump when a triangle reaches them: both are blurred, as films are.
    smooth = [gaussian_filter(a, 2.0) for a in (changed, (there - back) / (2 * step))]
    off = np.sqrt(np.mean((smooth[0] - smooth[1]) ** 2) / np.mean(smooth[1] ** 2))
    assert off < 0.12


def test_a_sphere_that_grows_gains_its_area():
    view = projection()
    points, motion = view.to_camera(SPHERE.vertices), motions(view)[3]
    changed = change(points, FACES, ones(), view, motion[..., None])[..., 0]
    # Rays are a little longer than their part along the axis, pixels larger behind the middle.
    area = 4 * np.pi * RADIUS**2
    mm2 = (GEOMETRY.sod_mm / GEOMETRY.sdd_mm) ** 2
    assert changed.sum() * mm2 == pytest.approx(area, rel=0.02)


def test_layers_and_parameters_are_those_one_by_one():
    view = projection()
    points = view.to_camera(SPHERE.vertices)
    layers = np.stack([points, view.to_camera(0.6 * SPHERE.vertices)])
    steps = np.stack([ones(), -0.4 * ones()])
    motion = np.moveaxis(motions(view), 0, -1)
    together = change(layers, FACES, steps, view, motion)
    for p in range(4):
        alone = sum(
            change(layers[k], FACES, steps[k], view, motion[..., p : p + 1])[..., 0]
            for k in range(2)
        )
        assert np.abs(together[..., p] - alone).max() < 1e-3 * np.abs(alone).max() + 1e-6


def test_a_parallel_beam_is_refused():
    with pytest.raises(ValueError, match="parallel"):
        projection(Geometry(150, 150, (1.0, 1.0), np.inf, np.inf))
