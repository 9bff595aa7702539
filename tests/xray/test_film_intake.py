"""Films as clinics store them: read right whatever was done to them, or refused in one line."""

from __future__ import annotations

import json

import film_samples as fs
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from osteoprint.errors import FilmError
from osteoprint.frames import Side, View
from osteoprint.study.film_steps import draw_steps
from osteoprint.xray.film import examine_film
from osteoprint.xray.film_letters import find_letters, painted_over
from osteoprint.xray.film_marker import find_marker, visible_mm
from osteoprint.xray.film_pair import examine_pair
from osteoprint.xray.film_tissue import tissue_around
from osteoprint.xray.materials import BODY
from osteoprint.xray.projector import path_lengths

SMALL = {"shape": (600, 480)}


def worst_edge(film, truth):
    """Largest error of the upright box around the bone, as a share of the bone's length."""
    lean = np.deg2rad(film.bone.turn_deg)
    down, right = np.array([np.cos(lean), -np.sin(lean)]), np.array([np.sin(lean), np.cos(lean)])
    edges = []
    for axis, size in ((down, film.bone.size[0]), (right, film.bone.size[1])):
        true, middle = truth.outline @ axis, float(np.dot(film.bone.centre, axis))
        edges += [middle - size / 2 - true.min(), middle + size / 2 - true.max()]
    return np.abs(edges).max() / np.ptp(truth.outline @ down)


def check(film, truth, *, edge=0.01):
    """The film shows what it should, bone bright, the bone where it is and of its size."""
    assert np.corrcoef(film.whole.ravel(), truth.image.ravel())[0, 1] > 0.5
    assert worst_edge(film, truth) < edge
    assert abs(film.bone.turn_deg - truth.turn_deg) < 2.5
    assert film.radiograph.geometry.spacing_at_bone_mm[0] == pytest.approx(truth.mm, rel=0.01)


@pytest.mark.parametrize("polarity", ["bone_bright", "bone_dark"])
@pytest.mark.parametrize("form", ["whole", "rect", "round"])
def test_polarity_and_field_are_found(tmp_path, polarity, form):
    truth = fs.sample(turn_deg=6, **SMALL)
    shown = fs.grey(truth, polarity)
    if form != "whole":
        # Of the grey that air has not: black on black is no edge to be seen.
        shown = fs.collimate(shown, form, 1.0 if polarity == "bone_bright" else 0.0, turn=3)
    film = examine_film(fs.save_picture(tmp_path / "a.png", shown, fs.facts(truth)), View.AP)
    assert film.polarity.polarity == polarity
    assert film.field.form == {"whole": "whole", "rect": "polygon", "round": "round"}[form]
    check(film, truth)


def test_letters_are_painted_over_and_bone_is_not():
    truth = fs.sample(**SMALL)
    shown = fs.grey(truth).astype(np.float32)
    written = fs.write_text(shown, "R 24.11.", (40, 40)).astype(np.float32)
    inside = np.ones(shown.shape, bool)
    letters = find_letters(written, inside)
    assert letters[40:80, 40:200].any()
    assert not find_letters(shown, inside).any()
    np.testing.assert_allclose(painted_over(written, letters, inside), shown, atol=0.02)


@pytest.mark.parametrize(
    ("shape", "size"), [("ball", 25.4), ("square", 20.0), ("disc", 20.0), ("rod", 50.0)]
)
def test_a_scale_object_gives_the_scale(shape, size):
    film = fs.with_marker(fs.sample(shape=(1500, 1200)), size, (700, 1050), shape, 10.0)
    film = fs.with_noise(film, 20000, 1)
    image = np.clip(film.image, 0, 4.0)
    found = find_marker(image, np.ones(image.shape, bool))
    assert found is not None
    assert visible_mm(found.form, size) / found.size_px == pytest.approx(film.mm, rel=0.01)


def test_a_femoral_head_is_no_scale_object():
    image = np.clip(fs.sample().image, 0, 4.0)
    assert find_marker(image, np.ones(image.shape, bool)) is None


@pytest.mark.parametrize(("said", "quarters"), [("down", 2), ("left", 1), ("right", 3)])
def test_a_film_on_its_side_is_put_upright(tmp_path, said, quarters):
    truth = fs.sample(turn_deg=3, **SMALL)
    shown = np.rot90(fs.grey(truth), quarters)
    path = fs.save_picture(tmp_path / "a.png", shown, fs.facts(truth, proximal=said))
    check(examine_film(path, View.AP), truth)
    fs.save_picture(path, shown, fs.facts(truth))
    if quarters % 2:
        with pytest.raises(FilmError, match="proximal"):
            examine_film(path, View.AP)


def test_a_mirrored_film_is_turned_back(tmp_path):
    truth = fs.sample(turn_deg=3, **SMALL)
    shown = fs.grey(truth)[:, ::-1]
    check(
        examine_film(
            fs.save_picture(tmp_path / "a.png", shown, fs.facts(truth, mirrored=True)), View.AP
        ),
        truth,
    )


@pytest.mark.parametrize("kind", ["DX", "CR", "RF", "SC"])
def test_dicom_films_of_every_kind(tmp_path, kind):
    truth = fs.sample(**SMALL)
    stored = np.round(fs.grey(truth, "bone_dark") * 4095)
    path = fs.save_dicom(
        tmp_path / "a.dcm", stored, truth, kind, PhotometricInterpretation="MONOCHROME1"
    )
    film = examine_film(path, View.AP)
    assert film.radiograph.side is Side.RIGHT
    check(film, truth)


def test_a_header_that_lies_about_polarity_is_found_out(tmp_path):
    truth = fs.sample(**SMALL)
    stored = np.round(fs.grey(truth) * 4095)
    path = fs.save_dicom(tmp_path / "a.dcm", stored, truth, PhotometricInterpretation="MONOCHROME1")
    film = examine_film(path, View.AP)
    check(film, truth)
    assert any("other way round" in w for w in film.warnings)


@pytest.mark.parametrize("view", [View.AP, View.ML])
def test_a_bone_in_soft_tissue_is_found_and_freed(tmp_path, view):
    truth = fs.with_noise(fs.sample(soft_mm=50.0, turn_deg=-5, seed=3, view=view), 4000, 1)
    path = fs.save_picture(tmp_path / "a.png", fs.grey(truth, "bone_dark"), fs.facts(truth))
    film = examine_film(path, view)
    assert film.bone.tissue is not None
    check(film, truth, edge=0.02)
    # What is left is what the bone adds to the tissue that would lie in its place.
    traced = fs.phantom("femur", "human", 3, Side.RIGHT, 50.0)[2]
    mu = BODY.mu_per_mm(70.0)
    adds = np.tensordot(mu - mu[0], path_lengths(traced, truth.camera), axes=1)
    seen, adds = (gaussian_filter(x, 2.0) for x in (film.radiograph.image, adds))
    assert np.corrcoef(seen.ravel(), adds.ravel())[0, 1] > 0.98


def test_tissue_is_carried_under_the_bone():
    y, x = np.mgrid[:120, :90].astype(np.float32)
    limb = 0.01 * x + 0.5
    bone = (np.abs(x - 45) < 6) & (y > 20) & (y < 100)
    level = tissue_around(np.where(bone, limb + 1, limb), bone, np.ones(bone.shape, bool))
    np.testing.assert_allclose(level[bone], limb[bone], atol=0.05)


def test_two_films_that_differ_in_length_are_brought_together(tmp_path):
    for tilt, corrected in ((0.0, False), (20.0, True)):
        ap, ml = fs.sample(tilt_deg=tilt, **SMALL), fs.sample(view=View.ML, **SMALL)
        paths = [
            fs.save_picture(tmp_path / f"{f.view.value}.png", fs.grey(f), fs.facts(f))
            for f in (ap, ml)
        ]
        pair = examine_pair(*paths)
        assert (pair.stretches != (1.0, 1.0)) is corrected
        assert any("slanted" in w for w in pair.warnings) is corrected
        after = [n * s for n, s in zip(pair.lengths_mm, pair.stretches, strict=True)]
        assert after[0] == pytest.approx(after[1], rel=0.02)


def test_lengths_a_fifth_apart_are_two_bones(tmp_path):
    ap, ml = fs.sample(**SMALL), fs.sample(view=View.ML, **SMALL)
    first = fs.save_picture(tmp_path / "a.png", fs.grey(ap), fs.facts(ap))
    spacing = [1.4 * mm for mm in ml.camera.geometry.pixel_spacing_mm]
    second = fs.save_picture(
        tmp_path / "m.png", fs.grey(ml), fs.facts(ml, pixel_spacing_mm=spacing)
    )
    with pytest.raises(FilmError, match=r"m\.png.*shows a bone of"):
        examine_pair(first, second)


def test_every_step_is_drawn(tmp_path):
    truth = fs.sample(**SMALL)
    film = examine_film(
        fs.save_picture(tmp_path / "a.png", fs.grey(truth), fs.facts(truth)), View.AP
    )
    draw_steps(film, tmp_path / "steps.png")
    assert (tmp_path / "steps.png").stat().st_size > 20_000
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"pixel_spacing_mm": None}, "no scale"),
        ({"sod_mm": None}, "no distances"),
        ({"pixel_spacing_mm": None, "marker_mm": 25.0}, "no scale object"),
        ({"pixel_spacing_mm": [40.0, 40.0]}, "impossible pixel spacing"),
        ({"sod_mm": 2000.0}, "beyond sdd_mm"),
        ({"view": "ML"}, "in the place of the AP"),
        ({"polarity": "sideways"}, "polarity"),
    ],
)
def test_what_a_film_lacks_is_an_error(tmp_path, said, match):
    truth = fs.sample(**SMALL)
    path = fs.save_picture(tmp_path / "a.png", fs.grey(truth), fs.facts(truth, **said))
    with pytest.raises(FilmError, match=match) as caught:
        examine_film(path, View.AP)
    assert "\n" not in str(caught.value)


@pytest.mark.real
def test_real_films_of_a_wrist_and_a_knee(real_data, tmp_path):
    films = sorted(real_data.glob("autoscoper/*/films/*.tif"))
    assert len(films) == 10
    camera = {"k": [[8000, 0, 880], [0, 8000, 880], [0, 0, 1]], "r": np.eye(3).tolist(),
              "t_mm": [0, 0, 1300]}  # fmt: skip
    for path in films[::3]:
        link = tmp_path / path.name
        link.symlink_to(path)
        link.with_name(path.name + ".json").write_text(json.dumps({"camera": camera}))
        film = examine_film(link, None)
        assert film.polarity.polarity == "bone_dark"
        assert film.field.form == "round"
        assert film.bone is None or film.bone.cut
