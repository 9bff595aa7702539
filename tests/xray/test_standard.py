"""The standard picture: one scale, upright, whatever the film."""

from __future__ import annotations

import numpy as np
import pytest

from osteoprint.errors import FilmError
from osteoprint.frames import Side, View
from osteoprint.xray.camera import Geometry
from osteoprint.xray.radiograph import Radiograph
from osteoprint.xray.standard import StandardFrame, place, standard_picture

FRAME = StandardFrame(96, 32, 4.0)


def stick(
    spacing: float = 1.0,
    length_mm: float = 300.0,
    width_mm: float = 30.0,
    turn_deg: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
    magnification: float = 1.15,
) -> Radiograph:
    """A film of a stick with a knob at its upper right, sizes in mm at the bone's plane."""
    size = int(480 / spacing)
    geometry = Geometry(size, size, (spacing,) * 2, 1000.0 * magnification, 1000.0)
    mm = spacing / magnification
    y, x = ((np.mgrid[:size, :size] - (size - 1) / 2) * mm) - np.reshape(shift, (2, 1, 1))
    turn = np.deg2rad(turn_deg)
    along = y * np.cos(turn) + x * np.sin(turn)
    across = x * np.cos(turn) - y * np.sin(turn)
    edge = 0.5 * mm
    shape = np.clip((length_mm / 2 - np.abs(along)) / edge, 0, 1)
    shape = shape * np.clip((width_mm / 2 - np.abs(across)) / edge, 0, 1)
    knob = (np.hypot(along + 0.35 * length_mm, across - 20) < 18).astype(float)
    image = np.maximum(shape, knob).astype(np.float32) * 3 + 7
    return Radiograph(image, geometry, View.AP, Side.RIGHT, "test")


@pytest.mark.parametrize("turn", [-25.0, -3.0, 0.0, 12.0])
def test_place_finds_turn_and_length(turn):
    found = place(stick(turn_deg=turn))
    assert found.length_mm == pytest.approx(300.0, abs=3.0)
    assert found.turn_deg == pytest.approx(turn, abs=3.0)


def test_the_same_bone_looks_the_same_from_every_film():
    reference = standard_picture(stick(), FRAME)
    others = (
        stick(spacing=0.5),
        stick(turn_deg=15.0),
        stick(shift=(40.0, -25.0)),
        stick(magnification=1.4),
    )
    for film in others:
        picture = standard_picture(film, FRAME)
        assert np.abs(picture - reference).mean() < 0.02
        assert np.corrcoef(picture.ravel(), reference.ravel())[0, 1] > 0.97


def test_exposure_does_not_matter():
    film = stick()
    darker = Radiograph(film.image * 0.2 + 55, film.geometry, film.view, film.side, "test")
    np.testing.assert_allclose(
        standard_picture(darker, FRAME), standard_picture(film, FRAME), atol=2e-4
    )


def test_a_larger_bone_is_larger_in_the_picture():
    small = standard_picture(stick(length_mm=200.0), FRAME) > 0.5
    large = standard_picture(stick(length_mm=300.0), FRAME) > 0.5
    rows = [np.flatnonzero(m.any(axis=1)).size * FRAME.spacing_mm for m in (small, large)]
    assert rows == pytest.approx([200.0, 300.0], abs=2 * FRAME.spacing_mm)


def test_up_stays_up_and_left_stays_left():
    picture = standard_picture(stick(turn_deg=20.0), FRAME)
    half_rows, half_columns = FRAME.rows // 2, FRAME.columns // 2
    # Only the knob reaches so far to the right, and it is at the top.
    strip = picture[:, half_columns + 4 :]
    assert strip[:half_rows].sum() > 5
    assert strip[half_rows:].sum() < 0.05 * strip[:half_rows].sum()


def test_no_bone_and_no_long_bone_are_errors():
    film = stick()
    flat = Radiograph(np.full_like(film.image, 3), film.geometry, film.view, None, "test")
    with pytest.raises(FilmError, match="background"):
        place(flat, "flat.png")
    y, x = np.mgrid[:480, :480] - 240
    disc = ((x * x + y * y) < 100**2).astype(np.float32)
    with pytest.raises(FilmError, match="elongated"):
        place(Radiograph(disc, film.geometry, film.view, None, "test"), "disc.png")
