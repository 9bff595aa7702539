"""Quick RMS between many bones: exact where it must be, close to the proper one elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from osteoprint.ct.parametric import sample_bone
from osteoprint.ct.variation import Variation
from osteoprint.frames import anatomical_frame, apply
from osteoprint.shape.alignment import align_rigid
from osteoprint.shape.distance import surface_distance
from osteoprint.shape.resemblance import Resemblance


@pytest.fixture(scope="module")
def femora() -> list[trimesh.Trimesh]:
    """Six parametric femora in their anatomical frames."""
    out = []
    for seed in range(6):
        mesh, _ = sample_bone(np.random.default_rng(seed), kind="femur")
        frame = anatomical_frame(mesh.vertices, mesh.faces, bone="femur")
        vertices = apply(frame.world_to_bone, mesh.vertices)
        out.append(trimesh.Trimesh(vertices, mesh.faces, process=False))
    return out


@pytest.fixture(scope="module")
def resemblance(femora) -> Resemblance:
    return Resemblance.of(femora)


def proper(a: trimesh.Trimesh, b: trimesh.Trimesh) -> float:
    moved = a.copy()
    moved.apply_transform(align_rigid(a, b))
    return surface_distance(moved, b).rms_mm


def test_a_bone_equals_itself_and_order_does_not_matter(resemblance):
    rms = resemblance.rms_mm(np.array([0, 0, 1, 2]))
    np.testing.assert_array_equal(np.diag(rms), 0)
    assert rms[0, 1] == pytest.approx(0, abs=1e-9)
    np.testing.assert_array_equal(rms, rms.T)


def test_it_agrees_with_the_proper_measurement(femora, resemblance):
    quick = resemblance.rms_mm(np.arange(6))
    pairs = [(i, j) for i in range(6) for j in range(i)]
    slow = np.array([proper(femora[i], femora[j]) for i, j in pairs])
    fast = np.array([quick[i, j] for i, j in pairs])
    assert np.corrcoef(fast, slow)[0, 1] > 0.98
    np.testing.assert_allclose(fast, slow, rtol=0.15)


def test_a_changed_bone_is_as_far_as_it_is_properly(femora, resemblance):
    changes = [
        Variation.none(),
        *(Variation.draw(450.0, np.random.default_rng(seed), (400.0, 500.0)) for seed in (1, 2)),
        Variation.none(),
    ]
    first, second = (
        trimesh.Trimesh(change(femora[0].vertices), femora[0].faces, process=False)
        for change in changes[1:3]
    )
    quick = resemblance.rms_mm(np.array([0, 0, 0, 3]), changes)
    assert quick[0, 1] == pytest.approx(proper(first, femora[0]), rel=0.12)
    assert quick[1, 2] == pytest.approx(proper(first, second), rel=0.12)
    assert quick[1, 3] == pytest.approx(proper(first, femora[3]), rel=0.15)


def test_a_small_turn_and_shift_cost_nothing(femora):
    turned = femora[1].copy()
    turned.apply_transform(trimesh.transformations.rotation_matrix(0.03, [1, 2, 3], [5, 0, 0]))
    rms = Resemblance.of([femora[1], turned]).rms_mm(np.arange(2))
    assert rms[0, 1] < 0.35
