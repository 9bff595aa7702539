"""Two films of one bone that disagree: which outline is believed, and what is said about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from film_samples import facts, grey, sample, save_picture

from osteoprint.errors import FilmError
from osteoprint.frames import View
from osteoprint.xray import film_pair
from osteoprint.xray.film import Film, examine_film
from osteoprint.xray.film_bone import FoundBone

PATHS = (Path("ap.png"), Path("ml.png"))


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Film:
    """A film of a bare bone, of which the tests say what was found on it."""
    truth = sample(shape=(400, 320))
    path = save_picture(tmp_path_factory.mktemp("film") / "a.png", grey(truth), facts(truth))
    return examine_film(path, View.AP)


def of_length(film: Film, length_mm: float, *, cut: bool = False, tissue: bool = True) -> Film:
    mask = np.ones((4, 4), bool)
    bone = FoundBone(
        mask, 0.0, (2.0, 2.0), (length_mm / film.radiograph.geometry.spacing_at_bone_mm[0], 9.0),
        cut, mask.astype(np.float32) if tissue else None,
    )  # fmt: skip
    return replace(film, bone=bone, camera=None)


def agreeing(monkeypatch, films, **again):
    """What comes of two films, given how long their bones are under another outline."""

    def examine(path, view, *, marker_mm, outline):
        found = again[f"{path.stem}_{outline}"]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(film_pair, "examine_film", examine)
    return film_pair._agreeing(films, PATHS, None)


def test_a_lens_of_tissue_is_left_out_where_both_films_then_agree(film, monkeypatch):
    for cut in (False, True):
        first = of_length(film, 503.0), of_length(film, 541.0, cut=cut)
        held = of_length(film, 510.0)
        films, notes = agreeing(monkeypatch, first, ml_held=held, ap_rough=of_length(film, 507.0))
        assert films == (first[0], held)
        assert len(notes) == 1
        assert notes[0].startswith("ml.png")


def test_a_hidden_end_is_put_back_where_both_films_then_agree(film, monkeypatch):
    first = of_length(film, 510.0), of_length(film, 480.0)
    rough = of_length(film, 512.0)
    films, notes = agreeing(monkeypatch, first, ap_held=first[0], ml_rough=rough)
    assert films == (first[0], rough)
    assert notes[0].startswith("ml.png")


def test_a_slanted_bone_stays_as_it_was_seen(film, monkeypatch):
    first = of_length(film, 480.0), of_length(film, 510.0)
    films, notes = agreeing(
        monkeypatch, first, ml_held=of_length(film, 508.0), ap_rough=of_length(film, 484.0)
    )
    assert films == first
    assert not notes


def test_films_that_agree_bare_bones_and_what_cannot_be_read_are_left_alone(film, monkeypatch):
    alike = of_length(film, 500.0), of_length(film, 505.0)
    bare = of_length(film, 500.0, tissue=False), of_length(film, 550.0)
    for first in (alike, bare):
        assert agreeing(monkeypatch, first) == (first, [])
    apart = of_length(film, 500.0), of_length(film, 550.0)
    unread = FilmError(PATHS[0], "shows nothing", "take it again")
    assert agreeing(monkeypatch, apart, ml_held=unread, ap_rough=unread) == (apart, [])
