"""Models fitted to films: derivatives, recovery, one film, what is known how well."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from osteoprint.frames import apply
from osteoprint.reconstruct.fitting import Level, _directions, _look, bent
from osteoprint.reconstruct.reconstruction import reconstruct
from osteoprint.reconstruct.shot import Shot
from osteoprint.reconstruct.start import starts
from osteoprint.reconstruct.state import Placing, State
from osteoprint.reconstruct.statistical import fit_modes, sights
from osteoprint.reconstruct.uncertainty import doubt, shown
from osteoprint.shape.alignment import align_rigid
from osteoprint.shape.distance import surface_distance

LEVEL = Level(pixel=0.005, modes=3, functions=0, steps=6, independent_px=12.0)


def off(toy, vertices: np.ndarray, truth: np.ndarray) -> float:
    """Surface RMS after alignment, mm."""
    made = trimesh.Trimesh(vertices, toy.faces, process=False)
    true = trimesh.Trimesh(truth, toy.faces, process=False)
    made.apply_transform(align_rigid(made, true))
    return surface_distance(made, true).rms_mm


def test_the_start_has_the_films_length(toy, films, truth):
    (start, *_) = starts(toy.model, [Shot.of(f) for f in films])
    length = np.ptp(start.vertices(toy.model)[:, 0])
    assert length == pytest.approx(np.ptp(truth[:, 0]), rel=0.02)


def test_steps_of_a_placing_add_up():
    placing = Placing.expected(np.eye(3), np.array([0, 0, 1000.0]), np.ones(6))
    there = placing.stepped(np.array([0.1, -0.2, 0.05, 1, 2, 3]))
    back = there.stepped(-np.array([0.1, -0.2, 0.05, 1, 2, 3]))
    assert np.abs(back.total[0] - np.eye(3)).max() < 0.03
    assert np.allclose(there.total[1], [1, 2, 1003])
    assert there.total[0] @ there.total[0].T == pytest.approx(np.eye(3))


def test_the_jacobian_is_that_of_differences(toy, films):
    """Of the model's contrast, the divisor held: coefficients, and all parts of the pose."""
    shots = [Shot.of(films[0])]
    state = starts(toy.model, shots)[0].widened(3, 0)
    (sight,) = sights(toy.model, shots, LEVEL)
    look = _look(toy.model, sight, state)
    exact = look.jacobian(toy.model, state, _directions(toy.model, 3, 0))
    steps = np.diag([0.1] * 3 + [0.04, 0.02, 0.004] + [0.3, 0.3, 12.0])
    for k, step in enumerate(steps):
        there, back = (_rest(toy.model, sight, state.stepped(sign * step)) for sign in (1.0, -1.0))
        measured = (look.slope * (there - back))[look.on] / (2 * step[k])
        alike = measured @ exact[:, k] / np.linalg.norm(measured) / np.linalg.norm(exact[:, k])
        assert alike > 0.97, k
        size = np.linalg.norm(exact[:, k]) / np.linalg.norm(measured)
        assert size == pytest.approx(1.0, abs=0.12), k


def _rest(model, sight, state) -> np.ndarray:
    """The model's image less its local mean."""
    from osteoprint.reconstruct.contrast import smoothed
    from osteoprint.reconstruct.shot import MODEL_BLUR_PX

    image = smoothed(_look(model, sight, state).sharp, MODEL_BLUR_PX)
    return image - sight.target.seen.mean(image)


def test_a_bent_curve_grows_less_and_less():
    image = np.linspace(0, 3, 50, dtype=np.float32)
    assert np.array_equal(bent(image, 0.0), image)
    slope = np.diff(bent(image, 1.0))
    assert (slope > 0).all()
    assert (np.diff(slope) < 0).all()


def test_two_films_tell_the_shape(toy, films, truth):
    found = reconstruct(toy.model, films, "refined")
    assert off(toy, found.vertices, truth) < 0.6
    assert min(found.likeness) > 0.95
    assert found.surface.is_watertight
    assert found.surface.volume > 0
    assert found.doubt is not None
    assert found.doubt.expected_rms_mm < found.doubt.feared_rms_mm < 2.0


def test_placings_are_found(toy, films):
    """AP was turned by 3 degrees about its length, ML by -4; the films' own lean is not theirs."""
    state = fit_modes(toy.model, [Shot.of(f) for f in films]).state
    turned = [np.rad2deg(p.turn) for p in state.placings]
    assert np.abs(turned[0][1]) == pytest.approx(3.0, abs=1.5)
    assert np.abs(turned[1][1]) == pytest.approx(4.0, abs=1.5)


def test_one_film_works_and_knows_less(toy, films, truth):
    two = reconstruct(toy.model, films, "statistical")
    one = reconstruct(toy.model, films[:1], "statistical")
    assert one.doubt.expected_rms_mm > two.doubt.expected_rms_mm
    assert any("one film only" in w for w in one.warnings)
    assert off(toy, one.vertices, truth) < 3.0


def test_the_more_films_show_the_less_is_feared(toy):
    """From nothing shown, where the models of others are all there is, to everything."""
    model = toy.model
    count = len(model.functions)
    nothing, some, all_ = (
        doubt(model, known * np.eye(count), refined=True) for known in (0.0, 1.0, 1e8)
    )
    # A bone of which nothing is seen is as far off as bones are from the mean of others.
    apart = np.sqrt((model.unlike_mm**2).sum(axis=1).mean() + np.average(model.rest_mm**2))
    assert nothing.expected_rms_mm == pytest.approx(apart, rel=0.25)
    assert nothing.expected_rms_mm > some.expected_rms_mm > all_.expected_rms_mm
    assert all_.expected_rms_mm < 1e-3 * nothing.expected_rms_mm
    assert nothing.expected_rms_mm < nothing.feared_rms_mm


def test_poses_take_knowledge_from_the_shape(toy):
    """What a pose may explain as well is not shown."""
    model, rng = toy.model, np.random.default_rng(0)
    count = len(model.functions)
    looks = rng.normal(size=(400, 5 + count + 6))
    information = looks.T @ looks
    information[5 : 5 + count, 5 : 5 + count] += np.eye(count)
    told = shown(model, information, 5, count)
    information[5 + count :, 5 + count :] += 1e12 * np.eye(6)
    sure = shown(model, information, 5, count)
    assert np.linalg.eigvalsh(sure - told).min() > -1e-6 * np.abs(sure).max()
    assert np.trace(sure) > np.trace(told)


def test_a_left_bones_films_give_its_mirror_image(toy, films, truth):
    """Exchange left and right on the films, say left: the surface is the mirror image."""
    from dataclasses import replace

    from osteoprint.frames import Side

    left = [
        replace(
            film,
            whole=np.ascontiguousarray(film.whole[:, ::-1]),
            radiograph=replace(
                film.radiograph, side=Side.LEFT,
                image=np.ascontiguousarray(film.radiograph.image[:, ::-1]),
            ),
            bone=None if film.bone is None else replace(
                film.bone, turn_deg=-film.bone.turn_deg, mask=film.bone.mask[:, ::-1],
                centre=(film.bone.centre[0], film.whole.shape[1] - 1 - film.bone.centre[1]),
            ),
        )
        for film in films
    ]  # fmt: skip
    found = reconstruct(toy.model, left, "statistical")
    surface = found.surface
    assert surface.volume > 0
    mirrored = np.array(surface.vertices) * [1, -1, 1]
    right = reconstruct(toy.model, films, "statistical").surface
    moved = apply(
        align_rigid(trimesh.Trimesh(mirrored, surface.faces[:, ::-1], process=False), right),
        mirrored,
    )
    assert np.sqrt(((moved - right.vertices) ** 2).sum(axis=1).mean()) < 0.3


@pytest.mark.parametrize("method", ["laplacian", "ffd", "tps", "contour"])
def test_classical_methods_come_closer_than_their_template(toy, films, truth, method):
    from osteoprint.reconstruct.classical import _begun

    begun = _begun(toy.model, [Shot.of(f) for f in films]).vertices
    found = reconstruct(toy.model, films, method)
    assert found.doubt is None
    assert found.surface.is_watertight
    assert off(toy, found.vertices, truth) < max(0.8 * off(toy, begun, truth), 1.2)


def test_a_state_keeps_its_numbers_when_widened():
    state = State(np.array([1.0, 2.0]), np.array([3.0]), ())
    wide = state.widened(3, 2)
    assert wide.coefficients.tolist() == [1.0, 2.0, 0.0]
    assert wide.beyond.tolist() == [3.0, 0.0]
    assert wide.widened(1, 0).coefficients.tolist() == [1.0]
