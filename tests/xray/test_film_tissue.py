"""Soft tissue beneath a bone, and the outline of what stands out of it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from osteoprint.xray.film_outline import outlined, without_lumps
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


def test_the_outline_is_drawn_to_the_pixel_from_one_that_lies_about_right() -> None:
    mask, whole = bone(), np.ones((ROWS, COLUMNS), bool)
    rng = np.random.default_rng(1)
    film = limb() + np.where(mask, 0.5, 0.0) + 0.005 * rng.normal(size=mask.shape)
    row, column = np.mgrid[:ROWS, :COLUMNS]
    # Too far out everywhere, and further at one end.
    lump = (row > 630) & (row < 648) & (np.abs(column - 150) < 12)
    found = ndimage.binary_dilation(mask, iterations=4) | lump
    seen = outlined(film.astype(np.float32), found, whole)
    assert not (mask & ~seen).any()
    assert not (seen & ~ndimage.binary_dilation(mask, iterations=2)).any()
    for end in (0, -1):
        truth, drawn = (np.flatnonzero(m.any(axis=1))[end] for m in (mask, seen))
        assert abs(int(truth) - int(drawn)) <= 1


def test_where_a_film_is_burnt_out_the_outline_stays_as_it_was_found() -> None:
    mask, whole = bone(), np.ones((ROWS, COLUMNS), bool)
    film = limb() + np.where(mask, 0.5, 0.0)
    burnt = np.zeros(mask.shape, bool)
    burnt[:200] = True
    film = np.where(burnt, 1.0, np.minimum(film, 1.6) / 1.7).astype(np.float32)
    found = ndimage.binary_dilation(mask, iterations=4)
    seen = outlined(film, found, whole)
    assert not (found & ~seen)[:195].any()
    assert not (seen & ~ndimage.binary_dilation(mask, iterations=2))[210:].any()


def test_a_film_that_shows_nothing_where_bone_was_found_keeps_what_was_found() -> None:
    found, whole = bone(), np.ones((ROWS, COLUMNS), bool)
    assert np.array_equal(outlined(np.zeros(found.shape, np.float32), found, whole), found)


def test_a_lens_of_tissue_beyond_the_bones_edge_is_taken_off_its_outline() -> None:
    mask = bone()
    row, column = np.mgrid[:ROWS, :COLUMNS]
    low = int(np.flatnonzero(mask.any(axis=1))[-1])
    middle = float(np.mean(np.flatnonzero(mask[low - 10])))
    swells = np.exp(-(((row - low - 16) / 16.0) ** 2 + ((column - middle) / 20.0) ** 2) * 1.5)
    rng = np.random.default_rng(2)
    film = limb() + np.where(mask, 0.5, 0.0) + 0.3 * swells + 0.005 * rng.normal(size=mask.shape)
    lens = mask | (swells > 0.3)
    assert (lens & ~mask)[low + 4 :].sum() > 600
    seen = without_lumps(film.astype(np.float32), lens)
    assert not (seen & ~ndimage.binary_dilation(mask, iterations=2)).any()
    assert (mask & ~seen).sum() < 0.01 * mask.sum()


def test_an_outline_that_no_edge_holds_is_left_as_it_is() -> None:
    mask = bone()
    smooth = without_lumps(limb().astype(np.float32), mask)
    assert (mask ^ smooth).sum() < 0.01 * mask.sum()
    assert np.array_equal(without_lumps(np.zeros(mask.shape, np.float32), mask), mask)
