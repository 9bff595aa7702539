"""Shapes with known distances first, then the bones made from them."""

from __future__ import annotations

from dataclasses import replace

import igl
import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray

from osteoprint.ct import implicit
from osteoprint.ct.parametric import (
    FemurParameters,
    TibiaParameters,
    femur,
    sample_bone,
    sample_femur,
    sample_tibia,
    tibia,
)
from osteoprint.errors import InputError
from osteoprint.frames import Side

ALL = [(kind, size) for kind in ("femur", "tibia") for size in ("human", "cat")]


def at(*point: float) -> tuple[NDArray[np.float64], ...]:
    return tuple(np.asarray(c) for c in point)


def smooth(parameters: FemurParameters) -> FemurParameters:
    return replace(parameters, bump_mm=0.0, sway_mm=0.0)


def fitted_head(mesh: trimesh.Trimesh, diameter_mm: float) -> tuple[NDArray[np.float64], float]:
    """Centre and diameter of the sphere through the upper medial part of a right head."""
    vertices = np.asarray(mesh.vertices)
    centre = vertices[np.argmax(vertices[:, 0])] - [diameter_mm / 2, 0.0, 0.0]
    for _ in range(20):
        away = vertices - centre
        near = np.abs(np.linalg.norm(away, axis=1) - diameter_mm / 2) < 0.04 * diameter_mm
        part = vertices[near & (0.6 * away[:, 0] - 0.8 * away[:, 1] > 0)]
        system = np.column_stack([2 * part, np.ones(len(part))])
        solution = np.linalg.lstsq(system, (part**2).sum(axis=1), rcond=None)[0]
        centre = solution[:3]
    return centre, 2 * float(np.sqrt(solution[3] + centre @ centre))


def test_sphere_and_capsule_distances() -> None:
    assert implicit.sphere(at(3, 4, 0), (0, 0, 0), 2) == pytest.approx(3)
    ends, radii = ((0, 0, 0), (10, 0, 0)), (1.0, 2.0)
    assert implicit.capsule(at(5, 4, 0), *ends, radii) == pytest.approx(2.5)
    assert implicit.capsule(at(-3, 0, 0), *ends, radii) == pytest.approx(2)
    assert implicit.capsule(at(15, 0, 0), *ends, radii) == pytest.approx(3)


def test_ellipsoid_is_zero_on_its_surface_and_exact_for_a_sphere() -> None:
    assert implicit.ellipsoid(at(0, 3, 0), (0, 0, 0), (2, 3, 4)) == pytest.approx(0)
    assert implicit.ellipsoid(at(0, 7, 0), (0, 0, 0), (2, 2, 2)) == pytest.approx(5)


def test_hull_of_two_circles_against_many_points_on_it() -> None:
    rng = np.random.default_rng(0)
    first, second = (0.0, 0.0, 3.0), (8.0, 2.0, 1.5)
    u, v = rng.uniform(-8, 16, (2, 300))
    # The hull is the union of the circles between the two: take 4000 of them.
    t = np.linspace(0, 1, 4000)[:, None]
    c = [a + t * (b - a) for a, b in zip(first, second)]
    expected = (np.hypot(u - c[0], v - c[1]) - c[2]).min(axis=0)
    outside = expected > 0
    actual = implicit.two_circles(u, v, first, second)
    np.testing.assert_allclose(actual[outside], expected[outside], atol=1e-5)
    assert (actual[~outside] <= 0).all()


def test_blend_only_adds_and_carve_only_takes() -> None:
    a, b = np.random.default_rng(1).uniform(-3, 3, (2, 1000))
    assert (implicit.blend(a, b, 1.0) <= np.minimum(a, b)).all()
    assert (implicit.carve(a, b, 1.0) >= np.maximum(a, -b)).all()
    far = np.abs(a - b) > 1
    np.testing.assert_array_equal(implicit.blend(a, b, 1.0)[far], np.minimum(a, b)[far])


def test_a_sphere_is_meshed_to_its_size() -> None:
    box = ((-12.0,) * 3, (12.0,) * 3)
    mesh = implicit.surface(lambda p: implicit.sphere(p, (0.3, 0.2, 0.1), 10.0), *box, 1.0, "ball")
    radius = np.linalg.norm(mesh.vertices - [0.3, 0.2, 0.1], axis=1)
    np.testing.assert_allclose(radius, 10.0, atol=0.08)
    assert mesh.volume == pytest.approx(4000 / 3 * np.pi, rel=0.01)


def test_shapes_that_are_no_simple_body_are_refused() -> None:
    box = ((-12.0,) * 3, (12.0,) * 3)
    with pytest.raises(InputError, match="ball: the shape does not fit"):
        implicit.surface(lambda p: implicit.sphere(p, (0, 0, 0), 15.0), *box, 1.0, "ball")
    with pytest.raises(InputError, match="ring: the shape is not one simple"):
        implicit.surface(
            lambda p: np.hypot(np.hypot(p[0], p[1]) - 7.0, p[2]) - 2.0, *box, 1.0, "ring"
        )


@pytest.mark.parametrize(("kind", "size"), ALL)
@pytest.mark.parametrize("seed", range(4))
def test_bones_are_closed_simple_outward_and_of_their_length(
    kind: str, size: str, seed: int
) -> None:
    mesh, parameters = sample_bone(np.random.default_rng(seed), kind, size)  # type: ignore[arg-type]
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.body_count == 1
    assert mesh.euler_number == 2
    assert mesh.volume > 0
    assert mesh.extents[0] == pytest.approx(parameters.length_mm, abs=1e-6)
    np.testing.assert_allclose(mesh.bounds.sum(axis=0), 0.0, atol=1e-9)
    assert 15_000 < len(mesh.faces) < 40_000


@pytest.mark.parametrize(("kind", "size"), ALL)
def test_the_same_seed_gives_the_same_bits(kind: str, size: str) -> None:
    one, two = (sample_bone(np.random.default_rng(5), kind, size)[0] for _ in range(2))  # type: ignore[arg-type]
    np.testing.assert_array_equal(one.vertices, two.vertices)
    np.testing.assert_array_equal(one.faces, two.faces)


@pytest.mark.parametrize(("kind", "size"), ALL)
def test_a_left_bone_mirrors_the_right_one(kind: str, size: str) -> None:
    right, left = (
        sample_bone(np.random.default_rng(6), kind, size, side)[0]  # type: ignore[arg-type]
        for side in (Side.RIGHT, Side.LEFT)
    )
    np.testing.assert_allclose(left.vertices, right.vertices * [1, -1, 1], atol=1e-9)
    np.testing.assert_array_equal(left.faces, right.faces[:, ::-1])
    assert left.volume == pytest.approx(right.volume, rel=1e-9)


@pytest.mark.parametrize("size", ["human", "cat"])
def test_the_head_is_a_sphere_of_its_diameter(size: str) -> None:
    for seed in range(3):
        p = sample_femur(np.random.default_rng(seed), size=size)  # type: ignore[arg-type]
        _, exact = fitted_head(femur(smooth(p)), p.head_diameter_mm)
        assert exact == pytest.approx(p.head_diameter_mm, rel=0.01)
        _, lived = fitted_head(femur(p), p.head_diameter_mm)
        assert lived == pytest.approx(p.head_diameter_mm, rel=0.06)


@pytest.mark.parametrize("size", ["human", "cat"])
def test_a_right_femur_points_its_head_inwards_and_its_condyles_back(size: str) -> None:
    p = smooth(sample_femur(np.random.default_rng(7), size=size))  # type: ignore[arg-type]
    mesh = femur(p)
    head, _ = fitted_head(mesh, p.head_diameter_mm)
    vertices = np.asarray(mesh.vertices)
    shaft = vertices[np.abs(vertices[:, 0]) < 0.1 * p.length_mm].mean(axis=0)
    knee = vertices[vertices[:, 0] < -0.4 * p.length_mm]
    assert head[0] > 0.4 * p.length_mm
    assert head[1] < shaft[1] - 0.8 * p.head_diameter_mm
    # The bow is to the front: mid-shaft lies before the ends' line.
    assert shaft[2] > (head[2] + knee[:, 2].mean()) / 2
    medial, lateral = knee[knee[:, 1] < knee[:, 1].mean()], knee[knee[:, 1] > knee[:, 1].mean()]
    assert medial[:, 2].min() == pytest.approx(lateral[:, 2].min(), abs=1e-4 * p.length_mm)
    assert np.ptp(knee[:, 1]) == pytest.approx(p.epicondylar_width_mm, rel=0.05)


def test_anteversion_and_neck_shaft_angle_move_the_head_as_they_should() -> None:
    p = smooth(sample_femur(np.random.default_rng(8)))
    heads = {}
    for anteversion, angle in ((0.0, 125.0), (20.0, 125.0), (0.0, 140.0)):
        changed = replace(p, anteversion_deg=anteversion, neck_shaft_angle_deg=angle)
        mesh = femur(changed)
        head, _ = fitted_head(mesh, p.head_diameter_mm)
        back = mesh.vertices[mesh.vertices[:, 0] < 0][:, 2].min()
        side = mesh.vertices[mesh.vertices[:, 0] < 0][:, 1].max()
        heads[anteversion, angle] = head - [0.0, side, back]
    start = heads[0.0, 125.0]
    offset = p.neck_length_mm * np.sin(np.deg2rad(125))
    forward = heads[20.0, 125.0] - start
    assert forward[2] == pytest.approx(offset * np.sin(np.deg2rad(20)), abs=1.5)
    assert forward[1] == pytest.approx(offset * (1 - np.cos(np.deg2rad(20))), abs=1.5)
    steeper = p.neck_length_mm * (np.sin(np.deg2rad(125)) - np.sin(np.deg2rad(140)))
    assert (heads[0.0, 140.0] - start)[1] == pytest.approx(steeper, abs=1.5)


def test_a_right_tibia_has_its_malleolus_inside_and_its_tuberosity_in_front() -> None:
    p = replace(sample_tibia(np.random.default_rng(9)), bump_mm=0.0, sway_mm=0.0)
    mesh = tibia(p)
    vertices = np.asarray(mesh.vertices)
    assert vertices[np.argmin(vertices[:, 0]), 1] < -0.2 * p.ankle_ml_mm
    below = vertices[(vertices[:, 0] > 0.3 * p.length_mm) & (vertices[:, 0] < 0.42 * p.length_mm)]
    front = below[np.argmax(below[:, 2])]
    assert abs(front[1] - below[:, 1].mean()) < 0.15 * p.plateau_width_mm
    assert front[2] > vertices[np.abs(vertices[:, 0]) < 0.05 * p.length_mm][:, 2].max()
    knee = vertices[vertices[:, 0] > 0.4 * p.length_mm]
    assert np.ptp(knee[:, 1]) == pytest.approx(p.plateau_width_mm, rel=0.07)
    assert np.ptp(knee[:, 1]) > 1.2 * np.ptp(knee[:, 2])


def test_bones_of_one_set_of_measures_are_still_individuals() -> None:
    p = sample_femur(np.random.default_rng(10))
    one, two = femur(p), femur(replace(p, surface_seed=p.surface_seed + 1))
    assert one.extents[0] == pytest.approx(two.extents[0])
    squared = igl.point_mesh_squared_distance(
        np.asarray(two.vertices), np.asarray(one.vertices), np.asarray(one.faces)
    )[0]
    assert 0.3 < np.sqrt(np.mean(squared)) < 4.0


@pytest.mark.parametrize(
    ("size", "length", "spread", "head"),
    [("human", 435.0, 28.0, 45.8), ("cat", 110.0, 9.0, 9.8)],
)
def test_samples_follow_the_published_figures(
    size: str, length: float, spread: float, head: float
) -> None:
    rng = np.random.default_rng(11)
    drawn = [sample_femur(rng, size=size) for _ in range(2000)]  # type: ignore[arg-type]
    lengths = np.array([p.length_mm for p in drawn])
    widths = np.array([p.epicondylar_width_mm for p in drawn])
    assert lengths.mean() == pytest.approx(length, rel=0.01)
    assert lengths.std() == pytest.approx(spread, rel=0.08)
    assert np.mean([p.head_diameter_mm for p in drawn]) == pytest.approx(head, rel=0.01)
    assert 0.6 < np.corrcoef(lengths, widths)[0, 1] < 0.9
    assert len({p.surface_seed for p in drawn}) == 2000


def test_unknown_kinds_and_sizes_and_wild_parameters_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="use femur or tibia"):
        sample_bone(rng, "rib")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="use human or cat"):
        sample_tibia(rng, size="dog")  # type: ignore[arg-type]
    p = sample_femur(rng)
    with pytest.raises(InputError, match="head_diameter_mm is -1"):
        femur(replace(p, head_diameter_mm=-1.0))
    with pytest.raises(InputError, match="length_mm is nan"):
        femur(replace(p, length_mm=float("nan")))
    with pytest.raises(InputError, match="resolution"):
        femur(p, resolution_mm=0.0)
    q: TibiaParameters = sample_tibia(rng)
    with pytest.raises(InputError, match="plateau_width_mm is 0"):
        tibia(replace(q, plateau_width_mm=0.0))
