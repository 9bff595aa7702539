"""The network that finds bones: what ships is what the command makes, and films are repeatable."""

from __future__ import annotations

from importlib.resources import as_file, files

import numpy as np
from safetensors import safe_open

from osteoprint.xray.film_finder import LOOKED_AT, WEIGHTS, bone_probability, network, prepared
from osteoprint.xray.finder_films import draw_film, specimen
from osteoprint.xray.finder_training import FinderTraining, held_out_overlap, loss


def test_what_ships_was_made_with_the_settings_of_the_command():
    with as_file(files("osteoprint.xray").joinpath(WEIGHTS)) as path:
        assert path.stat().st_size < 3_000_000
        with safe_open(path, framework="numpy") as stored:
            assert stored.metadata()["settings"] == repr(FinderTraining())


def test_films_are_repeatable_and_bones_never_shown_are_found():
    # Seeds beyond those of the training: these bones are new to the network.
    group = [specimen(9_000), specimen(9_001)]
    films, bones = [], []
    for index in range(6):
        film, bone = draw_film(group[index % 2], group, np.random.default_rng(index))
        again, _ = draw_film(group[index % 2], group, np.random.default_rng(index))
        np.testing.assert_array_equal(film, again)
        assert film.shape[1] == LOOKED_AT
        films.append(np.pad(film, [(0, 0), (0, 0), (0, LOOKED_AT - film.shape[2])]))
        bones.append(np.pad(bone, [(0, 0), (0, LOOKED_AT - bone.shape[1])]))
    overlap = held_out_overlap(network(), np.stack(films).astype(np.float16), np.stack(bones))
    assert np.median(overlap) > 0.85


def test_an_empty_film_shows_no_bone():
    image, inside = np.zeros((200, 150), np.float32), np.ones((200, 150), bool)
    assert prepared(image, inside, 0.0).shape == (3, 200, 150)
    assert (bone_probability(image, inside, 0.0) > 0.5).mean() < 0.01


def test_a_right_answer_costs_less():
    import torch

    truth = torch.zeros(2, 1, 16, 16)
    truth[:, :, 4:12, 6:10] = 1
    assert loss(8 * (2 * truth - 1), truth) < 0.01 < 1 < loss(-8 * (2 * truth - 1), truth)
