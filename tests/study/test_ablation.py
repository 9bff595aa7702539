"""The ablation: every line changes what it says, and the page says what the figures are."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from cats import FRAME, make_bone

from osteoprint.errors import InputError
from osteoprint.fingerprint.settings import TrainingSettings
from osteoprint.study import ablation_films
from osteoprint.study.ablation import BASE, SCALES, SMALL, Line, Scale, cases, run_ablation
from osteoprint.study.ablation_page import _points, table, write_ablation
from osteoprint.study.experiment import StudyBone

TINY = Scale(
    "tiny", 5,
    dataclasses.replace(SMALL.settings, steps=2, bones_per_batch=3, views_per_bone=2),
    "resnet10t",
)  # fmt: skip
SOME = (BASE.name, "AP alone", "each bone fills its picture", "d = 16")


@pytest.fixture(scope="module")
def bones() -> list[StudyBone]:
    return [make_bone(index) for index in range(5)]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where films are kept."""
    return tmp_path_factory.mktemp("films")


@pytest.fixture(scope="module")
def lines(bones: list[StudyBone], films: Path) -> list[Line]:
    assert FRAME.rows == 96
    return run_ablation(
        bones, TINY, unseen=("cat 3", "cat 4"), seeds=(0, 1), only=SOME, accelerator="cpu",
        films_folder=films,
    )  # fmt: skip


@pytest.mark.parametrize("scale", SCALES.values(), ids=list(SCALES))
def test_every_case_is_a_possible_setting_and_differs_from_the_base(scale: Scale) -> None:
    every = cases(scale)
    assert every[0] is BASE
    assert len({case.name for case in every}) == len(every)
    for case in every[1:]:
        network = dataclasses.replace(scale.settings.network, **case.network)
        settings = dataclasses.replace(scale.settings, network=network, **case.settings)
        assert isinstance(settings, TrainingSettings)
        others = (case.views, case.films, case.bones, case.proportions)
        assert settings != scale.settings or others != ("both", 1.0, 1.0, "real")


def test_every_case_and_seed_is_judged(lines: list[Line]) -> None:
    assert [(line.case.name, line.seed) for line in lines] == [
        (name, seed) for seed in (0, 1) for name in SOME
    ]
    for line in lines:
        assert 0 <= line.validation <= 1
        assert 0 <= line.unseen <= 1
        assert 0.4 < line.pairs <= 1
    # Not one network was the other's.
    assert len({(line.validation, line.unseen, line.pairs) for line in lines}) > 4


def test_the_page_and_the_json_say_the_same(lines: list[Line], tmp_path: Path) -> None:
    values = write_ablation(tmp_path / "new", lines, TINY, (3, 2), "Ablation <1>")
    assert json.loads((tmp_path / "new" / "ablation.json").read_text()) == values
    page = (tmp_path / "new" / "ablation.html").read_text()
    assert "Ablation &lt;1&gt;" in page
    assert "tiny" in page
    for row in values["table"]:
        assert row["case"] in page
        assert f"{row['validation']:.2f}" in page
    assert [_points(change, 2) for change in (0.0, -0.004, 0.004, -1.5, 2.0)] == [
        "0.00", "0.00", "0.00", "−1.50", "+2.00",
    ]  # fmt: skip
    changes = {row["case"]: row["change"] for row in table(lines)}
    assert changes[BASE.name] == 0.0


def test_one_bone_alone_cannot_be_told_from_others(bones: list[StudyBone], tmp_path: Path) -> None:
    alone = run_ablation(bones[:4], TINY, unseen=("cat 3",), only=SOME[:2], accelerator="cpu")
    assert [(line.unseen, line.pairs) for line in alone] == [(None, None)] * 2
    values = write_ablation(tmp_path, alone, TINY, (3, 1), "One")
    assert json.loads((tmp_path / "ablation.json").read_text()) == values
    assert "<td>–</td><td>–</td>" in (tmp_path / "ablation.html").read_text()
    assert "nan" not in (tmp_path / "ablation.json").read_text().lower()


def test_a_file_is_no_folder(lines: list[Line], tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(InputError, match="is a file"):
        write_ablation(tmp_path / "x", lines, TINY, (3, 2), "")


def test_films_that_are_not_kept_are_the_same(lines: list[Line], bones: list[StudyBone]) -> None:
    (alone,) = run_ablation(
        bones, TINY, unseen=("cat 3", "cat 4"), only=SOME[:1], accelerator="cpu"
    )
    assert (alone.case, alone.pairs) == (lines[0].case, lines[0].pairs)
    assert alone.pairs not in {line.pairs for line in lines[1:]}


def test_films_that_are_kept_are_not_taken_again(
    lines: list[Line], bones: list[StudyBone], films: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And networks trained beside each other are those trained one after the other."""
    monkeypatch.setattr(ablation_films, "_taken", lambda *_: pytest.fail("taken again"))
    again = run_ablation(
        bones, TINY, unseen=("cat 3", "cat 4"), only=SOME[:3], accelerator="cpu",
        films_folder=films, at_once=2,
    )  # fmt: skip
    first = [line for line in lines if line.seed == 0][:3]
    assert [(a.case, a.validation, a.unseen, a.pairs) for a in again] == [
        (f.case, f.validation, f.unseen, f.pairs) for f in first
    ]
    assert all(a.seconds > 0 for a in again)
