"""Models of shapes that are known to vary in one way only, and what they say of others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from osteoprint.errors import InputError, ModelError
from osteoprint.frames import Side, apply, rigid
from osteoprint.shape.model_quality import compactness, generality, specificity, unexplained
from osteoprint.shape.ssm import ShapeModel, procrustes, smooth_basis

BODY = trimesh.creation.icosphere(subdivisions=2)
FACES = np.array(BODY.faces)


def shape(length: float, width: float = 14.0) -> np.ndarray:
    x, y, z = np.array(BODY.vertices).T
    return np.stack([x * length, y * width, z * 10 + 3 * y**2 + 2 * x**3 * y], axis=1)


def posed(points: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    pose = rigid(Rotation.random(random_state=rng).as_matrix(), rng.normal(0, 300, 3))
    return apply(pose, points)


LENGTHS = (40.0, 43.0, 46.0, 49.0, 55.0)


@pytest.fixture(scope="module")
def model() -> ShapeModel:
    """Of bodies that differ in length and width, each in its own pose."""
    rng = np.random.default_rng(0)
    shapes = [posed(shape(x, 14 + rng.normal()), n) for n, x in enumerate(LENGTHS)]
    return ShapeModel.build(shapes, FACES, side=Side.RIGHT)


def rms(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.sqrt(((first - second) ** 2).sum(axis=1).mean()))


def test_procrustes_undoes_poses_and_keeps_sizes() -> None:
    aligned = procrustes([posed(shape(x), n) for n, x in enumerate(LENGTHS)])
    same = procrustes([posed(shape(45.0), n) for n in range(4)])
    assert np.abs(same - same[0]).max() < 1e-9
    for x, found in zip(LENGTHS, aligned, strict=True):
        truth = shape(x) - shape(x).mean(axis=0)
        assert np.linalg.norm(found - found.mean(axis=0)) == pytest.approx(np.linalg.norm(truth))


def test_one_way_to_vary_is_one_mode() -> None:
    shapes = [posed(shape(x), n) for n, x in enumerate(LENGTHS)]
    model = ShapeModel.build(shapes, FACES)
    assert compactness(model)[0] == pytest.approx(1.0, abs=1e-6)
    assert model.deviations[0] == pytest.approx(
        np.std(LENGTHS, ddof=1) * np.linalg.norm(BODY.vertices[:, 0]), rel=1e-3
    )


def test_modes_are_orthonormal_and_sorted(model: ShapeModel) -> None:
    flat = model.modes.reshape(len(model.modes), -1)
    assert flat.shape[0] == len(LENGTHS) - 1
    assert np.allclose(flat @ flat.T, np.eye(len(flat)), atol=1e-9)
    assert (np.diff(model.deviations) <= 0).all()


def test_coefficients_undo_an_instance_in_any_pose(model: ShapeModel) -> None:
    two = model.truncated(2)
    given = np.array([1.5, -0.7])
    assert np.allclose(two.coefficients(posed(two.instance(given), 9)), given, atol=1e-3)


def test_training_shapes_are_said_exactly(model: ShapeModel) -> None:
    rng = np.random.default_rng(0)
    first = shape(LENGTHS[0], 14 + rng.normal())
    assert unexplained(model, posed(first, 3), [len(model.modes)])[0] < 1e-3
    assert unexplained(model, first, [0])[0] > 1.0


def test_samples_have_the_spread_of_the_model(model: ShapeModel) -> None:
    rng = np.random.default_rng(1)
    drawn = np.stack([model.sample(rng) for _ in range(400)])
    along = (drawn - model.mean).reshape(400, -1) @ model.modes[0].ravel()
    assert along.std() == pytest.approx(model.deviations[0], rel=0.15)


def test_nothing_seen_leaves_the_model_as_it_is(model: ShapeModel) -> None:
    known = model.posterior(np.empty(0, int), np.empty((0, 3)), 1.0)
    assert np.allclose(known.mean, model.mean)
    assert np.allclose(known.covariance, np.eye(len(model.modes)))


def test_seen_points_pin_the_shape(model: ShapeModel) -> None:
    truth = model.instance(np.array([1.0, -1.0]))
    seen = np.arange(0, len(truth), 7)
    sure = model.posterior(seen, truth[seen], 0.01)
    unsure = model.posterior(seen, truth[seen], 50.0)
    assert rms(sure.mean, truth) < 0.05
    assert rms(sure.mean, truth) < rms(unsure.mean, truth) < rms(model.mean, truth)
    variances = [np.trace(p.point_covariance(), axis1=1, axis2=2) for p in (sure, unsure)]
    assert (variances[0] <= variances[1]).all()


def test_posterior_is_that_of_the_textbook(model: ShapeModel) -> None:
    # The gain form of the same formula: another matrix is inverted.
    seen, noise = np.array([3, 40, 100]), 2.0
    places = model.mean[seen] + np.random.default_rng(2).normal(0, 3, (3, 3))
    basis = (model.modes * model.deviations[:, None, None])[:, seen].reshape(len(model.modes), -1).T
    gain = basis.T @ np.linalg.inv(basis @ basis.T + noise**2 * np.eye(9))
    found = model.posterior(seen, places, noise)
    assert np.allclose(found.coefficients, gain @ (places - model.mean[seen]).ravel())
    assert np.allclose(found.covariance, np.eye(len(model.modes)) - gain @ basis)


def test_posterior_samples_scatter_as_its_covariance_says(model: ShapeModel) -> None:
    seen = np.array([0, 1])
    known = model.posterior(seen, model.mean[seen], 1.0)
    rng = np.random.default_rng(3)
    drawn = np.stack([known.sample(rng)[50] for _ in range(3000)])
    assert np.allclose(np.cov(drawn.T), known.point_covariance()[50], atol=0.5)


@pytest.mark.parametrize(
    ("points", "places", "noise"),
    [
        (np.array([0, 1]), np.zeros((1, 3)), 1.0),
        (np.array([10_000]), np.zeros((1, 3)), 1.0),
        (np.array([0]), np.zeros((1, 3)), 0.0),
    ],
)
def test_impossible_observations_are_refused(
    model: ShapeModel, points: np.ndarray, places: np.ndarray, noise: float
) -> None:
    with pytest.raises(InputError):
        model.posterior(points, places, noise)


def test_shapes_that_do_not_correspond_are_refused(model: ShapeModel) -> None:
    with pytest.raises(InputError, match="correspond"):
        ShapeModel.build([shape(40.0), shape(40.0)[1:]], FACES)
    with pytest.raises(InputError, match="correspond"):
        ShapeModel.build([shape(40.0)], FACES)
    with pytest.raises(InputError, match="finite"):
        ShapeModel.build([shape(40.0), shape(40.0) * np.nan], FACES)
    with pytest.raises(InputError, match="at most"):
        model.instance(np.zeros(99))
    with pytest.raises(InputError, match="corresponding"):
        model.coefficients(shape(40.0)[1:])


def test_a_saved_model_comes_back(model: ShapeModel, tmp_path: Path) -> None:
    path = tmp_path / "femur.model"
    model.save(path)
    again = ShapeModel.load(path)
    for name in ("mean", "faces", "modes", "deviations"):
        assert np.array_equal(getattr(model, name), getattr(again, name))
    assert (again.shapes, again.bone, again.side) == (model.shapes, None, Side.RIGHT)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + size])
    assert header["__metadata__"]["format"] == "osteoprint shape model"


def test_damaged_models_are_refused(model: ShapeModel, tmp_path: Path) -> None:
    path = tmp_path / "femur.model"
    with pytest.raises(ModelError, match="no such file"):
        ShapeModel.load(path)
    model.save(path)
    whole = path.read_bytes()
    for broken in (b"", b"not a model", whole[:100], whole[:-8]):
        path.write_bytes(broken)
        with pytest.raises(ModelError):
            ShapeModel.load(path)


def test_generality_falls_with_modes_and_specificity_begins_at_the_mean() -> None:
    rng = np.random.default_rng(0)
    shapes = np.stack([shape(45 + 4 * rng.normal(), 14 + rng.normal()) for _ in range(8)])
    left = generality(shapes, FACES, [0, 1, 2]).mean(axis=0)
    assert left[0] > left[1] > left[2]
    model = ShapeModel.build(shapes, FACES)
    away = specificity(model, shapes, [0, 2], samples=20)
    assert away.shape == (20, 2)
    assert np.ptp(away[:, 0]) < 1e-9
    # Without modes every sample is the mean itself.
    nearest = min(unexplained(model, known, [0])[0] for known in shapes)
    assert away[0, 0] == pytest.approx(nearest, rel=1e-3)


def test_the_smooth_basis_of_a_sphere_is_known() -> None:
    sphere = trimesh.creation.icosphere(subdivisions=4, radius=2.0)
    values, functions = smooth_basis(np.array(sphere.vertices), np.array(sphere.faces), 9)
    # l (l + 1) / r², 2 l + 1 times.
    assert np.allclose(values, np.array([0, 2, 2, 2, 6, 6, 6, 6, 6]) / 4, atol=0.01)
    assert np.allclose(functions[:, 0], 1.0, atol=1e-6)
    assert np.allclose((functions**2).mean(axis=0), 1.0, atol=0.02)


def test_the_smooth_basis_refuses_too_many() -> None:
    with pytest.raises(InputError, match="functions"):
        smooth_basis(np.array(BODY.vertices), FACES, 10_000)
