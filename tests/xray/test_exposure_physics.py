"""The physics of an exposure, effect by effect, against what each must conserve or obey."""

from __future__ import annotations

import json

import numpy as np
import pytest

from osteoprint.xray.camera import Geometry
from osteoprint.xray.detector import (
    Detector,
    Motion,
    blurred,
    counted,
    focal_spot_mm,
    moved,
    open_beam,
    read_out,
)
from osteoprint.xray.display import Display, shown, stored, toned
from osteoprint.xray.exposure import Exposure, Tube, develop, exposure_from_dict, without
from osteoprint.xray.field import Collimation, Heel, falloff, fill, heel, opening
from osteoprint.xray.materials import BODY
from osteoprint.xray.presets import PRESETS, draw, preset, take
from osteoprint.xray.radiograph import line_integrals, transmission
from osteoprint.xray.scatter import Scatter, scattered
from osteoprint.xray.spectrum import (
    Beam,
    Spectrum,
    absorbed,
    detected,
    mono_spectrum,
    tube_beam,
    tube_spectrum,
)

TABLE = Geometry(120, 90, (0.5, 0.5), 1150.0, 1000.0)
PARALLEL = Geometry(120, 90, (0.5, 0.5), np.inf, np.inf)


def leg(geometry: Geometry = TABLE) -> np.ndarray:
    """(3, rows, columns) mm: a round leg of soft tissue with a bone in its middle."""
    column_mm = geometry.pixel_spacing_mm[1]
    x = (np.arange(geometry.columns) - (geometry.columns - 1) / 2) * column_mm
    soft = 2 * np.sqrt(np.clip(18.0**2 - x**2, 0, None))
    bone = 2 * np.sqrt(np.clip(6.0**2 - x**2, 0, None))
    rows = np.ones((geometry.rows, 1))
    return np.stack([rows * (soft - bone), rows * 0.4 * bone, rows * 0.6 * bone]).astype(np.float32)


# --- spectrum ----------------------------------------------------------------------------


def test_a_spectrum_ends_at_its_voltage_and_hardens_with_filtration():
    soft, hard = tube_spectrum(70), tube_spectrum(70, cu_mm=0.2)
    assert soft.energies_kev.max() <= 70.0
    assert hard.mean_kev > soft.mean_kev + 3
    assert hard.photons.sum() < soft.photons.sum()


def test_grouping_energies_keeps_the_signal_and_its_mean_energy():
    spectrum = tube_spectrum(75)
    signal = absorbed(spectrum) * spectrum.energies_kev
    beam = detected(spectrum)
    assert sum(beam.weights) == pytest.approx(1.0)
    assert np.dot(beam.weights, beam.energies_kev) == pytest.approx(
        np.average(spectrum.energies_kev, weights=signal)
    )
    assert 1.0 < beam.excess_noise < 1.5


def test_a_dozen_energies_stand_for_all_of_them():
    spectrum = tube_spectrum(70)
    fine, coarse = detected(spectrum, bins=200), tube_beam(70)
    lengths = np.array([[0, 50, 200, 100], [0, 5, 10, 20], [0, 2, 10, 15]], np.float32)[:, None]
    a, b = (-np.log(transmission(lengths, BODY, beam)) for beam in (fine, coarse))
    np.testing.assert_allclose(a, b, atol=0.001, rtol=0.002)


def test_one_energy_is_the_limit_of_a_beam():
    lengths = leg()
    through = transmission(lengths, BODY, detected(mono_spectrum(70.0)))
    np.testing.assert_allclose(-np.log(through), line_integrals(lengths, BODY, 70.0), atol=2e-5)


def test_a_beam_hardens():
    lengths = np.zeros((3, 1, 40), np.float32)
    lengths[2, 0] = np.linspace(1, 40, 40)
    mu = -np.log(transmission(lengths, BODY, tube_beam(70)))[0] / lengths[2, 0]
    assert (np.diff(mu) < 0).all()


@pytest.mark.parametrize(
    ("energies", "photons"), [([], []), ([50, 40], [1, 1]), ([50], [-1]), ([50], [0])]
)
def test_a_spectrum_that_is_none(energies, photons):
    with pytest.raises(ValueError, match=r"spectrum|energies|photons"):
        Spectrum(np.array(energies, float), np.array(photons, float))


def test_a_tube_that_is_none():
    with pytest.raises(ValueError, match="kvp"):
        tube_spectrum(500)


# --- field -------------------------------------------------------------------------------


def test_the_beam_falls_off_as_distance_and_slant_say():
    wide = Geometry(101, 101, (10.0, 10.0), 1000.0, 900.0)
    image = falloff(wide)
    assert image[50, 50] == pytest.approx(1.0)
    assert image[50, 100] == pytest.approx(np.cos(np.arctan(0.5)) ** 3, rel=1e-5)
    assert (falloff(PARALLEL) == 1).all()


def test_the_heel_darkens_the_anode_side_only():
    profile = heel(TABLE, Heel(12.0, "up"))[:, 0]
    assert (np.diff(profile) > 0).all()
    assert heel(TABLE, Heel(12.0, "left"))[0, 0] < 1 < heel(TABLE, Heel(12.0, "left"))[0, -1]
    assert (heel(TABLE, None) == 1).all()


def test_leaves_leave_the_field_that_they_say():
    light = opening(TABLE, Collimation((0.25, 0.25, 0.0, 0.0), 0.0, 1.0))
    assert np.asarray(light[:, 0]).sum() / TABLE.rows == pytest.approx(0.5, abs=1e-3)
    assert fill(TABLE).min() == fill(TABLE).max() == 1.0


# --- scatter -----------------------------------------------------------------------------


def test_scatter_adds_its_ratio_and_no_more():
    wide = Geometry(200, 200, (5.0, 5.0), 1150.0, 1000.0)
    primary = np.ones((200, 200), np.float32)
    thick = np.full((200, 200), 150.0, np.float32)
    glow = scattered(primary, thick, wide, Scatter(0.4))
    assert glow[100, 100] == pytest.approx(0.6, rel=1e-3)
    spot = np.zeros_like(thick)
    spot[100, 100] = 150.0
    assert scattered(primary, spot, wide, Scatter(0.4)).sum() == pytest.approx(0.6, rel=2e-3)
    assert not scattered(primary, thick, wide, None).any()


# --- detector ----------------------------------------------------------------------------


def test_blur_and_movement_keep_the_sum():
    image = np.zeros((120, 90), np.float32)
    image[60, 45] = 100.0
    for made in (blurred(image, TABLE, 1.5), moved(image, TABLE, Motion(4.0, 30.0))):
        assert made.sum() == pytest.approx(100.0, rel=1e-4)
        assert made.max() < 50


def test_a_blur_is_as_wide_as_it_says_at_any_pixel_size():
    for mm in (0.25, 0.5):
        geometry = Geometry(201, 201, (mm, mm), 1150.0, 1000.0)
        image = np.zeros((201, 201), np.float32)
        image[100, 100] = 1.0
        made = blurred(image, geometry, 3.0)
        at = (np.arange(201) - 100) * mm
        assert np.sqrt((made.sum(axis=0) * at**2).sum()) == pytest.approx(3.0, rel=0.01)


def test_the_focal_spot_shows_where_there_is_magnification():
    assert focal_spot_mm(TABLE, 1.2) == pytest.approx(1.2 * 0.15 / np.sqrt(12))
    assert focal_spot_mm(PARALLEL, 1.2) == 0.0


@pytest.mark.parametrize("photons_per_mm2", [40.0, 4000.0])
def test_grain_is_unbiased_and_as_large_as_photons_make_it(photons_per_mm2):
    geometry = Geometry(600, 600, (0.5, 0.5), 1150.0, 1000.0)
    signal = np.full((600, 600), 0.5, np.float32)
    rng = np.random.default_rng(3)
    found = counted(signal, geometry, photons_per_mm2, rng) * photons_per_mm2 * 0.25
    mean = 0.5 * photons_per_mm2 * 0.25
    assert found.mean() == pytest.approx(mean, rel=0.005)
    assert found.var() == pytest.approx(mean, rel=0.02)


def test_exposure_control_counts_behind_the_body():
    through = np.full((4, 4), 0.1, np.float32)
    panel = open_beam(Detector(0.1, 1000.0, True), through, np.full((4, 4), 50.0, np.float32))
    assert panel is not None
    assert panel.photons_per_mm2 == pytest.approx(10_000.0)
    assert read_out(through, TABLE, None, np.random.default_rng(0)) is through


# --- display -----------------------------------------------------------------------------


def test_a_curve_rises_and_keeps_its_ends():
    grey = np.linspace(0, 1, 500, dtype=np.float32)
    for curve in (Display(contrast=2.0), Display(gamma=1.4), Display(contrast=1.5, bits=8)):
        made = toned(grey, curve)
        assert made[0] == pytest.approx(0, abs=1e-6)
        assert made[-1] == pytest.approx(1, abs=1e-6)
        assert (np.diff(made) >= 0).all()
    assert len(np.unique(toned(grey, Display(bits=8)))) == 256


def test_grey_is_stored_in_either_polarity():
    grey = np.array([[0.0, 1.0]], np.float32)
    np.testing.assert_array_equal(stored(grey, bits=8), [[0, 255]])
    np.testing.assert_array_equal(stored(grey, bits=12, bone_dark=True), [[4095, 0]])


def test_the_window_ignores_what_is_outside_the_field():
    logs = np.linspace(0, 1, 10_000, dtype=np.float32).reshape(100, 100)
    logs[:10] = 50.0
    field = np.ones((100, 100), bool)
    field[:10] = False
    image = shown(logs, Geometry(100, 100, (1, 1)), Display(), field)
    assert image[50, 50] == pytest.approx((logs[50, 50] - 0.1) / 0.9, abs=0.01)


# --- exposures and presets ---------------------------------------------------------------


def test_ideal_and_paper_are_line_integrals():
    lengths, rng = leg(), np.random.default_rng(0)
    ideal = take(lengths, BODY, TABLE, "ideal", rng, energy_kev=80.0)
    np.testing.assert_array_equal(ideal, line_integrals(lengths, BODY, 80.0))
    paper = take(lengths, BODY, TABLE, "paper", rng)
    assert paper.sum() == pytest.approx(line_integrals(lengths, BODY, 146.0).sum(), rel=1e-4)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_settled_by_its_seed_and_survives_json(name):
    lengths = leg()
    one, two = (draw(name, np.random.default_rng(7)) for _ in range(2))
    assert one == two
    back = exposure_from_dict(json.loads(json.dumps(one.as_dict())))
    assert back == one
    image = develop(lengths, BODY, TABLE, one)
    np.testing.assert_array_equal(image, develop(lengths, BODY, TABLE, back))
    assert image.dtype == np.float32
    assert np.isfinite(image).all()
    other = develop(lengths, BODY, TABLE, draw(name, np.random.default_rng(8)))
    assert (name in {"paper", "ideal"}) == bool((other == image).all())


@pytest.mark.parametrize("name", ["clinic", "bad day"])
def test_bone_is_bright_on_the_screen(name):
    image = take(leg(), BODY, TABLE, name, np.random.default_rng(1))
    assert 0 <= image.min() < image.max() <= 1
    assert image[50:70, 42:48].mean() > image[50:70, 12:20].mean() + 0.1


def test_each_effect_can_be_off():
    exposure = draw("bad day", np.random.default_rng(2))
    lengths = leg()
    near = Geometry(120, 90, (0.5, 0.5), 1150.0, 700.0)  # magnified: the focal spot shows
    full = develop(lengths, BODY, near, exposure)
    for effect in ("anode", "leaves", "scatter", "focal_spot_mm", "motion", "panel"):
        assert (develop(lengths, BODY, near, without(exposure, effect)) != full).any(), effect
    with pytest.raises(ValueError, match="no effect"):
        without(exposure, "magic")


def test_an_exposure_with_all_effects_off_is_the_beam_alone():
    lengths = leg()
    made = develop(lengths, BODY, TABLE, Exposure("own", "log", Tube(70), None))
    beam = tube_beam(70)
    np.testing.assert_allclose(made, -np.log(transmission(lengths, BODY, beam)), atol=1e-6)


def test_an_exposure_needs_a_beam():
    with pytest.raises(ValueError, match="tube or an energy"):
        Exposure("own", "log", None, None)


def test_an_unknown_preset_names_the_known():
    with pytest.raises(ValueError, match=r"paper, ideal, clinic, bad day"):
        preset("sunny")


def test_a_table_of_other_materials_is_refused():
    with pytest.raises(ValueError, match="materials"):
        transmission(np.zeros((2, 3, 3), np.float32), BODY, Beam((70.0,), (1.0,)))
