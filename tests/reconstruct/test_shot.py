"""Films made ready: what lies where, mirrored, cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from osteoprint.frames import View
from osteoprint.reconstruct.shot import Shot


def shot(**changes: object) -> Shot:
    """A film with one bright bar, leaning by 10 degrees."""
    rows, columns = 400, 200
    r, c = np.indices((rows, columns)).astype(float)
    turn = np.deg2rad(10.0)
    down, right = (r - 210) * 1.0, (c - 90) * 1.0
    along = down * np.cos(turn) - right * np.sin(turn)
    across = down * np.sin(turn) + right * np.cos(turn)
    bar = (np.abs(along) < 150) & (np.abs(across) < 15)
    made = Shot(
        bar.astype(np.float32), np.ones((rows, columns), np.float32), View.AP, (1.15, 1.15),
        1150.0, 1000.0, (199.5, 99.5), 10.0, (210.0, 90.0), (300.0, 30.0), bar,
    )  # fmt: skip
    return replace(made, **changes)


def test_the_bone_stands_upright_in_the_middle():
    mask, image, exposed = shot().upright(1.0, 300.0)
    r, c = np.nonzero(mask)
    assert abs(r.mean() - (mask.shape[0] - 1) / 2) < 0.5
    assert abs(c.mean() - (mask.shape[1] - 1) / 2) < 0.5
    assert np.ptp(r) == pytest.approx(299, abs=2)
    assert np.ptp(c) == pytest.approx(29, abs=2)
    assert image.max() == pytest.approx(1.0, abs=0.01)
    assert exposed.min() in (0.0, 1.0)


def test_the_targets_camera_sees_what_the_film_sees():
    """A point before the camera falls onto the same grey value in film and target."""
    film = shot()
    target = film.target(0.8, 300.0)
    point = np.array([-12.0, 30.0, 1000.0])
    row = point[1] / point[2] * 1150.0 / 1.15 + film.principal[0]
    column = point[0] / point[2] * 1150.0 / 1.15 + film.principal[1]
    turned = film.axes @ point
    seen_row = turned[1] / turned[2] * target.projection.focal[0] + target.projection.middle[0]
    seen_column = turned[0] / turned[2] * target.projection.focal[1] + target.projection.middle[1]
    grid = film._grid(0.8, 300.0)
    at = grid[:, round(seen_row), round(seen_column)]
    assert at == pytest.approx([row, column], abs=0.6)


def test_mirroring_twice_changes_nothing():
    film = shot()
    again = film.mirrored.mirrored
    assert np.array_equal(again.image, film.image)
    assert np.array_equal(again.mask, film.mask)
    assert again.centre == film.centre
    assert again.turn_deg == film.turn_deg
    assert again.principal == film.principal


def test_a_mirrored_film_shows_the_mirrored_picture():
    film = shot()
    _, plain, _ = film.upright(1.0, 300.0)
    _, flipped, _ = film.mirrored.upright(1.0, 300.0)
    assert np.abs(plain[:, ::-1] - flipped).max() < 0.02


def test_an_end_that_was_not_exposed_is_cut():
    dark = shot().exposed.copy()
    dark[355:] = 0
    film = shot(exposed=dark)
    assert film._ends_unseen(1.0)
    assert not film._ends_unseen(-1.0)
