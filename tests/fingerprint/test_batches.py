"""What a training is shown in a step."""

from __future__ import annotations

import numpy as np
import torch

from osteoprint.fingerprint.batches import Batches, Stored
from osteoprint.fingerprint.losses import shape_loss
from osteoprint.fingerprint.settings import TrainingSettings

BONES = 12
MIRRORED = TrainingSettings(
    bones_per_batch=8, views_per_bone=2, neighbours=3, mirror=True, seed=3, accelerator="cpu"
)


def pictures() -> np.ndarray:
    """Of (12,) bones, two views each: bright on the left."""
    out = np.zeros((BONES, 2, 2, 24, 16), np.uint8)
    out[..., :6] = 160
    return out


def shapes() -> np.ndarray:
    at = np.arange(BONES, dtype=float)
    return np.abs(at[:, None] - at)


def test_mirror_images_are_bones_of_their_own_and_some_meet_their_twins():
    for rms_mm in (None, shapes()):
        batches = Batches(Stored(pictures()), MIRRORED, rms_mm, None, 0)
        met, sides = 0, set()
        for step in range(12):
            images, labels = batches(step)
            left, right = images[..., :6].mean((1, 2, 3)), images[..., -6:].mean((1, 2, 3))
            assert torch.equal(right > left, labels >= BONES)
            seen = labels.unique()
            assert len(labels) == MIRRORED.views_per_bone * len(seen)
            met += len(seen) - len((seen % BONES).unique())
            sides |= {bool(x) for x in seen >= BONES}
        assert met == 12 * MIRRORED.bones_per_batch // 4
        assert sides == {False, True}


def test_a_bone_is_never_its_own_neighbour():
    """Even where it is not known how far any other is."""
    unknown = np.full((2, 2), np.inf)
    np.fill_diagonal(unknown, 0.0)
    plain = TrainingSettings(bones_per_batch=2, views_per_bone=2, neighbours=3, accelerator="cpu")
    batches = Batches(Stored(pictures()[:2]), plain, unknown, None, 0)
    assert all(set(batches(step)[1].tolist()) == {0, 1} for step in range(8))


def test_few_bones_are_shown_on_either_side_in_turns():
    few = TrainingSettings(
        bones_per_batch=3, views_per_bone=2, neighbours=0, mirror=True, accelerator="cpu"
    )
    batches = Batches(Stored(pictures()), few, None, None, 0)
    sides = [batches(step)[1] >= BONES for step in range(12)]
    assert all(side.all() or not side.any() for side in sides)
    assert {bool(side[0]) for side in sides} == {False, True}


def test_without_mirror_images_nothing_is_turned_round():
    plain = TrainingSettings(bones_per_batch=8, views_per_bone=2, neighbours=3, accelerator="cpu")
    images, labels = Batches(Stored(pictures()), plain, shapes(), None, 0)(0)
    assert (images[..., :6].mean((1, 2, 3)) > images[..., -6:].mean((1, 2, 3))).all()
    assert int(labels.max()) < BONES


def test_where_no_distance_is_known_bones_are_only_kept_apart():
    prints = torch.nn.functional.normalize(torch.randn(6, 8, generator=torch.Generator()), dim=1)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    known = 5.0 * (labels[:, None] != labels[None, :])
    unknown = known.clone()
    unknown[:2, 4:] = unknown[4:, :2] = torch.inf
    some, all_ = (shape_loss(prints, labels, rms, 3.0) for rms in (unknown, known))
    assert torch.isfinite(some)
    assert some != all_
    # What is not asked for cannot matter: no distance between first and last bone enters.
    far = unknown.clone()
    far[:2, 4:] = far[4:, :2] = torch.nan
    assert shape_loss(prints, labels, far, 3.0) == some
