"""The films a network is trained on: complete, repeatable, gone on with, in time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from cats import FRAME, make_bone

from osteoprint.ct.variation import Variation
from osteoprint.fingerprint.samples import from_bytes
from osteoprint.fingerprint.settings import TrainingSettings
from osteoprint.frames import Side
from osteoprint.shape.deformation import FEWEST
from osteoprint.study import training_films
from osteoprint.study.experiment import StudyBone, quiet, train_on
from osteoprint.study.training_films import (
    affordable,
    make_training_films,
    part_key,
    parts_of,
    rms_between,
    variants_of,
)

SETTINGS = TrainingSettings(
    variants_per_bone=3, poses_per_variant=2, presets=("ideal", "clinic"), seed=4
)


@pytest.fixture(scope="module")
def bones() -> list[StudyBone]:
    return [make_bone(index) for index in range(2)]


def test_every_bone_and_variant_is_there(bones: list[StudyBone]) -> None:
    films = make_training_films(bones, FRAME, SETTINGS, quiet)
    assert films.pictures.shape == (6, 2, 2, FRAME.rows, FRAME.columns)
    assert films.bones.tolist() == [0, 0, 0, 1, 1, 1]
    assert films.originals.tolist() == [0, 3]
    bright = from_bytes(films.pictures).max(axis=(3, 4))
    assert (bright > 0.5).all()
    off = films.rms_mm[~np.eye(6, dtype=bool)]
    assert (off > 0.05).all()
    assert np.array_equal(films.rms_mm, films.rms_mm.T)


def test_the_number_of_processes_does_not_matter(
    bones: list[StudyBone], monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [*bones, *(make_bone(index) for index in range(2, FEWEST))]
    settings = dataclasses.replace(SETTINGS, variants_per_bone=2, drawn=1.0)
    alone = make_training_films(many, FRAME, settings, quiet)
    monkeypatch.setattr(training_films, "_FEW", 0)
    monkeypatch.setattr(training_films, "cores", lambda: 2)
    assert np.array_equal(make_training_films(many, FRAME, settings, quiet).pictures,
                          alone.pictures)  # fmt: skip


def test_what_was_made_is_not_made_again(
    bones: list[StudyBone], tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_training_films(bones, FRAME, SETTINGS, quiet, folder=tmp_path)
    made = sorted(tmp_path.iterdir())
    assert len(made) == 2
    made[0].unlink()
    calls = []
    real = training_films._take_part

    def counted(*task):
        calls.append(task)
        real(*task)

    monkeypatch.setattr(training_films, "_take_part", counted)
    again = make_training_films(bones, FRAME, SETTINGS, quiet, folder=tmp_path)
    assert len(calls) == 1
    assert np.array_equal(first.pictures, again.pictures)
    other = dataclasses.replace(SETTINGS, seed=5)
    changed = make_training_films(bones, FRAME, other, quiet, folder=tmp_path)
    assert len(calls) == 3
    assert not np.array_equal(changed.pictures, again.pictures)


def test_of_many_bones_every_second_variant_is_drawn_as_they_differ(
    bones: list[StudyBone],
) -> None:
    few = parts_of(bones, FRAME, SETTINGS)
    assert all(part.differing is None for part in few)
    tibia = dataclasses.replace(bones[0], record=dataclasses.replace(bones[0].record, bone="tibia"))
    many = [tibia, *bones, *(make_bone(index) for index in range(2, FEWEST))]
    parts = parts_of(many, FRAME, SETTINGS)
    assert parts[0].differing is None
    assert [part.member for part in parts[1:]] == list(range(FEWEST))
    assert np.isfinite(rms_between(many, parts)[3:, 3:]).all()
    part, length = parts[1], many[1].sample.frame.length_mm

    def change(number: int) -> Variation:
        return part.variation(number, length, part.draws(number))

    points = many[1].surface.vertices
    assert np.array_equal(change(0)(points), points)
    assert part.differing is not None
    wanted = part.differing.draw(0, part.draws(2), part.limits_mm)
    assert np.array_equal(change(2)(points), wanted(points))
    alone = dataclasses.replace(part, differing=None)
    smooth = alone.variation(1, length, alone.draws(1))
    assert np.array_equal(change(1)(points), smooth(points))
    # Other bones beside it are another variant of it, and other films.
    others = dataclasses.replace(
        part, differing=dataclasses.replace(part.differing, points=part.differing.points + 1.0)
    )
    assert len({part_key(many[1], p) for p in (part, alone, others)}) == 3


@pytest.mark.parametrize(("variants", "drawn"), [(2, 0.5), (3, 0.5), (2, 1.0), (5, 0.25)])
def test_the_share_of_drawn_variants_is_that_of_all_bones(
    bones: list[StudyBone], variants: int, drawn: float
) -> None:
    many = [*bones, *(make_bone(index) for index in range(2, FEWEST))]
    settings = dataclasses.replace(SETTINGS, variants_per_bone=variants, drawn=drawn)
    parts = parts_of(many, FRAME, settings)
    length = many[0].sample.frame.length_mm
    # Waves that are fitted are many; of those that are drawn there are 24.
    made = [
        len(part.variation(number, length, part.draws(number)).waves) > 24
        for part in parts
        for number in range(1, variants)
    ]
    assert sum(made) == int(drawn * FEWEST * (variants - 1))


def test_films_take_no_more_than_their_part_of_the_time(bones: list[StudyBone], tmp_path) -> None:
    many = dataclasses.replace(SETTINGS, variants_per_bone=None, poses_per_variant=10)
    assert variants_of(many, 2) == 360
    assert affordable(bones, FRAME, many) is many
    short = dataclasses.replace(many, minutes=0.05)
    fewer = affordable(bones, FRAME, short, tmp_path)
    assert fewer.variants_per_bone is not None
    assert 1 <= fewer.variants_per_bone < 100
    # What was decided stays decided.
    assert affordable(bones, FRAME, short, tmp_path) == fewer
    long = dataclasses.replace(many, minutes=1000.0)
    assert affordable(bones, FRAME, long).variants_per_bone == 360


def test_bones_of_two_kinds_or_sides_are_kept_apart_and_not_compared(
    bones: list[StudyBone],
) -> None:
    third = make_bone(2)
    tibia = dataclasses.replace(third, record=dataclasses.replace(third.record, bone="tibia"))
    left = dataclasses.replace(
        bones[1], sample=dataclasses.replace(bones[1].sample, side=Side.LEFT)
    )
    mixed = [bones[0], left, tibia]
    apart = rms_between(mixed, parts_of(mixed, FRAME, SETTINGS))
    which = np.repeat([0, 1, 2], SETTINGS.variants_per_bone)
    same = which[:, None] == which[None, :]
    assert np.isfinite(apart[same]).all()
    assert np.isinf(apart[~same]).all()
    # Bones of one kind are compared as if no other were there.
    alone = rms_between(bones, parts_of(bones, FRAME, SETTINGS))
    beside = [*bones, tibia]
    assert np.array_equal(rms_between(beside, parts_of(beside, FRAME, SETTINGS))[:6, :6], alone)
    model = train_on(mixed, FRAME, dataclasses.replace(SETTINGS, steps=2, bones_per_batch=4))
    assert model.card.figures.keys() >= {"steps"}
    assert "nearest median mm" not in model.card.figures
    assert all(np.isfinite(list(model.card.figures.values())))
