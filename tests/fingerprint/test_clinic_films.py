"""Small films of a clinic, read: the bone is left, the limb is not, and chance is in the seed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from osteoprint.ct.parametric import sample_bone as parametric_bone
from osteoprint.ct.phantom import volume_from_surface
from osteoprint.ct.variation import Variation
from osteoprint.fingerprint.clinic_films import read_pair
from osteoprint.fingerprint.samples import (
    PairPose,
    SampleBone,
    render_pair,
    sample_bone,
    varied_bone,
)
from osteoprint.frames import Side, anatomical_frame
from osteoprint.xray.camera import Pose
from osteoprint.xray.standard import StandardFrame

FRAME = StandardFrame.for_length(480.0)
POSE = PairPose(Pose(6.0, 4.0), Pose(6.0, -3.0), 70.0)


@pytest.fixture(scope="module")
def bone() -> SampleBone:
    surface, _ = parametric_bone(np.random.default_rng(2), kind="femur", side=Side.RIGHT)
    frame = anatomical_frame(surface.vertices, surface.faces, bone="femur", side=Side.RIGHT)
    volume = volume_from_surface(
        surface, voxel_mm=2.0, bone_to_world=frame.bone_to_world, rng=np.random.default_rng(0)
    )
    return sample_bone("a", volume, frame, Side.RIGHT, FRAME)


def clinic(bone: SampleBone, seed: int) -> np.ndarray:
    return read_pair(bone, POSE, FRAME, "clinic", np.random.default_rng(seed))


def test_plain_presets_are_rendered_plainly(bone: SampleBone) -> None:
    shown = read_pair(bone, POSE, FRAME, "ideal", np.random.default_rng(0))
    assert np.array_equal(shown, render_pair(bone, POSE, FRAME))


def test_the_bone_is_left_and_the_limb_is_not(bone: SampleBone) -> None:
    plain = render_pair(bone, POSE, FRAME) > 0.1
    for seed in range(4):
        shown = clinic(bone, seed)
        assert shown.shape == (2, FRAME.rows, FRAME.columns)
        assert shown.dtype == np.float32
        for view in range(2):
            seen = shown[view] > 0.1
            near = binary_dilation(plain[view], iterations=4)
            assert not (seen & ~near).any()
            assert (seen & plain[view]).sum() > 0.9 * plain[view].sum()


def test_films_differ_by_their_seed_alone(bone: SampleBone) -> None:
    assert np.array_equal(clinic(bone, 1), clinic(bone, 1))
    assert np.abs(clinic(bone, 1) - clinic(bone, 2)).max() > 0.1


def test_a_longer_variant_looks_longer(bone: SampleBone) -> None:
    none = Variation.none()
    longer = Variation(np.array([1.06, 1.0, 1.0]), 0.0, none.waves, none.phases, none.moves_mm)
    before, after = (
        np.ptp(np.flatnonzero((render_pair(one, POSE, FRAME)[0] > 0.1).any(axis=1)))
        for one in (bone, varied_bone(bone, longer))
    )
    assert after / before == pytest.approx(1.06, abs=0.012)
