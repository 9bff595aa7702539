"""Films that are shown together because they were least alike."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from osteoprint.errors import ModelError
from osteoprint.fingerprint.batches import Batches, Stored
from osteoprint.fingerprint.hard_positives import HardPositives
from osteoprint.fingerprint.settings import TrainingSettings
from osteoprint.fingerprint.training import train
from osteoprint.xray.standard import StandardFrame

BONES, FILMS = 6, 5
PLAIN = TrainingSettings(bones_per_batch=4, views_per_bone=2, neighbours=0, accelerator="cpu")


def shown_once() -> HardPositives:
    """Film k of every bone lies at k times 20 degrees on a circle."""
    hard = HardPositives(BONES, FILMS, 2)
    angle = torch.deg2rad(20.0 * torch.arange(FILMS).repeat(BONES))
    points = torch.stack([angle.cos(), angle.sin()], dim=1)
    hard.remember(np.arange(BONES), np.tile(np.arange(FILMS), (BONES, 1)), points)
    return hard


def test_of_many_sets_the_two_films_farthest_apart_are_shown():
    drawn = shown_once().draw(np.arange(BONES), 2, 200, np.random.default_rng(0))
    assert [set(pair) for pair in drawn.tolist()] == [{0, FILMS - 1}] * BONES


def test_of_few_sets_films_lie_farther_apart_than_of_one_and_none_is_there_twice():
    hard, bones = shown_once(), np.zeros(400, np.int64)
    apart = {}
    for candidates in (1, 3):
        drawn = hard.draw(bones, 2, candidates, np.random.default_rng(1))
        gap = np.abs(drawn[:, 0] - drawn[:, 1])
        assert gap.min() > 0
        assert set(drawn.ravel().tolist()) == set(range(FILMS))  # none is given up
        apart[candidates] = gap.mean()
    assert apart[3] > 1.3 * apart[1]


def test_a_film_that_was_never_shown_comes_first():
    hard = HardPositives(1, FILMS, 2)
    angle = torch.tensor([0.0, 3.0, 0.0, 3.0])  # as far apart as can be
    hard.remember(np.zeros(1, np.int64), np.array([[0, 1, 2, 3]]), torch.stack(
        [angle.cos(), angle.sin()], dim=1))  # fmt: skip
    drawn = hard.draw(np.zeros(50, np.int64), 2, 30, np.random.default_rng(2))
    assert (drawn == 4).any(axis=1).all()


def test_fewer_films_than_views_are_shown_again():
    drawn = HardPositives(2, 2, 4).draw(np.array([0, 1]), 3, 3, np.random.default_rng(3))
    assert drawn.shape == (2, 3)
    assert set(drawn.ravel().tolist()) <= {0, 1}


def test_what_is_remembered_goes_on():
    one, other = shown_once(), HardPositives(BONES, FILMS, 2)
    other.load(one.state())
    assert all(torch.equal(a, other.state()[k]) for k, a in one.state().items())
    with pytest.raises(ValueError, match="of other films"):
        HardPositives(BONES, FILMS + 1, 2).load(one.state())


def test_batches_remember_each_film_where_it_belongs_and_no_mirror_image():
    films = np.zeros((BONES, FILMS, 2, 24, 16), np.uint8)
    for mirror in (False, True):
        settings = dataclasses.replace(PLAIN, mirror=mirror)
        hard = HardPositives(BONES, FILMS, 3)
        batches = Batches(Stored(films), settings, None, None, 0, hard=hard)
        taken = []
        for step in range(6):
            _, labels = batches(step)
            bones, views, kept = batches._last
            assert (labels.numpy() % BONES == np.repeat(bones, 2)).all()
            assert (labels.numpy() >= BONES).tolist() == np.repeat(~kept, 2).tolist()
            numbers = torch.from_numpy(10 * np.repeat(bones, 2) + views.ravel()).float()
            batches.remember(numbers[:, None].expand(-1, 3))
            taken += [(b, v) for b, v in zip(np.repeat(bones[kept], 2), views[kept].ravel())]
        state = hard.state()
        wanted = torch.zeros(BONES, FILMS, dtype=torch.bool)
        for bone, view in taken:
            wanted[bone, view] = True
            assert state["fingerprints"][bone, view].tolist() == [10 * bone + view] * 3
        assert torch.equal(state["shown"], wanted)


def test_several_devices_do_not_share_what_is_remembered():
    settings = dataclasses.replace(PLAIN, devices=2, loss="triplet")
    films = np.zeros((3, 2, 2, 24, 16), np.uint8)
    with pytest.raises(ModelError, match="positive_candidates"):
        train(films, ["a", "b", "c"], StandardFrame(24, 16, 9.0), settings)


def test_a_training_remembers_what_it_showed_and_nothing_where_that_is_not_asked_for(tmp_path):
    films = np.random.default_rng(5).integers(0, 200, (3, 4, 2, 48, 16)).astype(np.uint8)
    network = dataclasses.replace(PLAIN.network, grid=(6, 2))
    settings = dataclasses.replace(PLAIN, network=network, loss="triplet", steps=8)
    for candidates in (3, 1):
        asked = dataclasses.replace(settings, positive_candidates=candidates)
        path = tmp_path / f"{candidates}.checkpoint"
        train(films, ["a", "b", "c"], StandardFrame(48, 16, 9.0), asked, checkpoint=path)
        kept = {k: v for k, v in load_file(path).items() if k.startswith("hard.")}
        if candidates == 1:
            assert not kept
            continue
        assert kept["hard.shown"].all()  # two of four films a step, those not yet shown first
        lengths = kept["hard.fingerprints"].norm(dim=2)
        torch.testing.assert_close(lengths, torch.ones(3, 4))
