"""Films taken when asked for: the same ones when a run is repeated, never two alike."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from cats import FRAME, make_bone

from osteoprint.fingerprint.batches import Batches
from osteoprint.fingerprint.settings import TrainingSettings
from osteoprint.study.experiment import StudyBone, quiet, train_on
from osteoprint.study.fresh_films import FreshFilms
from osteoprint.study.training_films import make_training_films

SETTINGS = TrainingSettings(
    variants_per_bone=2, poses_per_variant=2, presets=("ideal", "clinic"), fresh=True, seed=4,
    bones_per_batch=4, views_per_bone=2, steps=3, accelerator="cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def bones() -> list[StudyBone]:
    return [make_bone(index) for index in range(2)]


def test_the_bones_are_those_of_films_made_before(bones: list[StudyBone]) -> None:
    fresh = FreshFilms(bones, FRAME, SETTINGS)
    made = make_training_films(bones, FRAME, SETTINGS, quiet)
    assert len(fresh) == len(made.pictures) == 4
    assert np.array_equal(fresh.rms_mm, made.rms_mm)
    assert np.array_equal(fresh.originals, made.originals)
    some = fresh.some(fresh.originals, 2)
    assert some.shape == (2, 2, 2, FRAME.rows, FRAME.columns)
    assert np.array_equal(some, fresh.some(fresh.originals, 2))


def test_a_step_is_repeated_alike_and_no_two_steps_are(bones: list[StudyBone]) -> None:
    calm = Batches(FreshFilms(bones, FRAME, SETTINGS), SETTINGS, None, None, 0)
    first, second = calm(0)[0], calm(1)[0]
    late = Batches(FreshFilms(bones, FRAME, SETTINGS), SETTINGS, None, None, 0)
    assert torch.equal(late(1)[0], second)
    assert first.shape == second.shape == (8, 2, FRAME.rows, FRAME.columns)
    pairs = torch.cat([first, second]).flatten(1)
    assert len(torch.unique(pairs.round(decimals=3), dim=0)) == 16


def test_a_network_learns_from_them(bones: list[StudyBone]) -> None:
    one, two = (train_on(bones, FRAME, SETTINGS) for _ in range(2))
    again = two.encoder.state_dict()
    assert all(torch.equal(v, again[k]) for k, v in one.encoder.state_dict().items())
    stored = train_on(bones, FRAME, dataclasses.replace(SETTINGS, fresh=False)).encoder
    assert any(not torch.equal(v, again[k]) for k, v in stored.state_dict().items())
    assert one.card.settings["fresh"] is True
