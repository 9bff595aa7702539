"""Bones drawn as known ones differ: near the shape that was drawn, without a fold, in limits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import trimesh

from osteoprint.ct.parametric import sample_bone
from osteoprint.ct.variation import Variation
from osteoprint.frames import Side, anatomical_frame, apply
from osteoprint.shape.deformation import FEWEST, DeformationModel
from osteoprint.shape.resemblance import Resemblance

LIMITS_MM = (380.0, 520.0)
SEEDS = range(6)


@pytest.fixture(scope="module")
def femora() -> list[trimesh.Trimesh]:
    """Parametric femora in their anatomical frames."""
    out = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        mesh, _ = sample_bone(rng, kind="femur", size="human", side=Side.RIGHT)
        frame = anatomical_frame(mesh.vertices, mesh.faces, bone="femur", side=Side.RIGHT)
        vertices = apply(frame.world_to_bone, mesh.vertices)
        out.append(trimesh.Trimesh(vertices, mesh.faces, process=False))
    return out


@pytest.fixture(scope="module")
def model(femora: list[trimesh.Trimesh]) -> DeformationModel:
    found = DeformationModel.of(femora)
    assert found is not None
    return found


def test_few_bones_say_little(femora: list[trimesh.Trimesh]) -> None:
    assert DeformationModel.of(femora[: FEWEST - 1]) is None
    assert DeformationModel.of(femora[:FEWEST]) is not None


def test_cats_and_people_are_not_mixed(femora: list[trimesh.Trimesh]) -> None:
    cat = femora[0].copy()
    cat.apply_scale(0.25)
    assert DeformationModel.of([*femora, cat]) is None


@pytest.mark.parametrize("seed", SEEDS)
def test_a_bone_comes_near_the_shape(model: DeformationModel, seed: int) -> None:
    shape = model.shape(np.random.default_rng(seed), LIMITS_MM)
    bone = seed % len(model.points)
    before = np.linalg.norm(model.points[bone] - shape, axis=1)
    after = np.linalg.norm(model.towards(bone, shape)(model.points[bone]) - shape, axis=1)
    assert np.median(after) < 0.5 * np.median(before)
    assert np.median(after) < 4.0


def test_itself_is_left_as_it_is(model: DeformationModel) -> None:
    points = model.points[3]
    np.testing.assert_allclose(model.towards(3, points)(points), points, atol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_it_can_be_undone_and_does_not_fold(
    model: DeformationModel, femora: list[trimesh.Trimesh], seed: int
) -> None:
    bone = seed % len(femora)
    change = model.draw(bone, np.random.default_rng(seed), LIMITS_MM)
    points = np.asarray(femora[bone].vertices)[::5]
    assert np.abs(change.undone(change(points)) - points).max() < 0.01
    step = 0.01
    sides = [
        (change(points + step * e) - change(points - step * e)) / (2 * step) for e in np.eye(3)
    ]
    assert np.linalg.det(np.stack(sides, axis=-1)).min() > 0.2


def test_lengths_stay_within_their_limits(
    model: DeformationModel, femora: list[trimesh.Trimesh]
) -> None:
    low, high = 430.0, 440.0
    for seed in range(10):
        change = model.draw(seed, np.random.default_rng(seed), (low, high))
        assert 0.98 * low < np.ptp(change(np.asarray(femora[seed].vertices))[:, 0]) < 1.02 * high
    lengths = [
        np.ptp(model.shape(np.random.default_rng(seed), (low, high))[:, 0]) for seed in range(40)
    ]
    assert low - 1e-6 <= min(lengths)
    assert max(lengths) <= high + 1e-6


def test_drawn_bones_differ_as_the_known_ones_do(
    model: DeformationModel, femora: list[trimesh.Trimesh]
) -> None:
    known = np.arange(len(femora))
    rngs = [np.random.default_rng(seed) for seed in range(20)]
    # All from one bone: what does not change it would make them all alike.
    bones = np.zeros(20, np.int64)
    changes = [model.draw(0, rng, LIMITS_MM) for rng in rngs]
    rms = Resemblance.of(femora).rms_mm(
        np.r_[known, bones], [*[Variation.none()] * len(known), *changes]
    )
    count = len(known)

    def typical(block: np.ndarray) -> float:
        return float(np.median(block[~np.eye(len(block), dtype=bool)]))

    assert typical(rms[count:, count:]) == pytest.approx(typical(rms[:count, :count]), rel=0.3)


def test_the_digest_tells_other_bones(model: DeformationModel) -> None:
    other = dataclasses.replace(model, points=model.points + 0.01)
    again = dataclasses.replace(model, points=model.points.copy())
    assert other.sha256 != model.sha256
    assert again.sha256 == model.sha256
