"""What soft tissue adds where the bone lies: carried under it from what is seen beside it."""

from __future__ import annotations

import numpy as np
import pytest

from osteoprint.xray.film_tissue import tissue_around

ROWS, COLUMNS = 700, 300


def limb(*, half: float = 90.0, end: float = 60.0) -> np.ndarray:
    """(rows, columns) a round limb of 1 at its thickest, that ends round `end` pixels down."""
    row, column = np.mgrid[:ROWS, :COLUMNS].astype(float)
    beyond = np.maximum(end + half - row, 0.0)
    across = column - 150.0 - 0.04 * (row - 350.0)
    return np.asarray(
        np.sqrt(np.maximum(1.0 - (across / half) ** 2 - (beyond / half) ** 2, 0.0)), np.float32
    )


def bone() -> np.ndarray:
    """(rows, columns) bool, with a head near the end of the limb."""
    row, column = np.mgrid[:ROWS, :COLUMNS]
    shaft = (np.abs(column - 150) < 14) & (row > 110) & (row < 640)
    head = (row - 120) ** 2 + (column - 165) ** 2 < 24**2
    return np.asarray(shaft | head)


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_a_limb_is_as_thick_under_the_bone_as_it_is(noise: float) -> None:
    tissue, mask = limb(), bone()
    rng = np.random.default_rng(0)
    film = tissue + noise * rng.normal(size=tissue.shape) + np.where(mask, 0.8, 0.0)
    whole = np.ones(film.shape, bool)
    found = tissue_around(film.astype(np.float32), mask, whole)
    off = (found - tissue)[mask]
    assert np.abs(off.mean()) < 0.01
    assert np.sqrt((off**2).mean()) < 0.02
    # The head, where the limb grows thinner, no worse than the shaft.
    assert np.abs((found - tissue)[mask & (np.arange(ROWS)[:, None] < 145)]).mean() < 0.03
    # Beside the bone it is what was seen.
    away = np.zeros(film.shape, bool)
    away[:, :90] = True
    assert np.array_equal(found[away], film.astype(np.float32)[away])


def test_nothing_is_carried_from_where_the_beam_did_not_reach() -> None:
    tissue, mask = limb(), bone()
    inside = np.zeros(tissue.shape, bool)
    inside[:, 100:200] = True
    film = np.where(inside, tissue + np.where(mask, 0.8, 0.0), 0.0).astype(np.float32)
    found = tissue_around(film, mask, inside)
    assert not found[~inside].any()
    assert np.sqrt(((found - tissue)[mask & inside] ** 2).mean()) < 0.05


def test_a_bone_with_nothing_around_it_is_left_as_it_is() -> None:
    film = np.full((200, 120), 0.7, np.float32)
    mask, inside = np.ones(film.shape, bool), np.zeros(film.shape, bool)
    inside[40:160, 30:90] = True
    assert not tissue_around(film, mask, inside).any()
