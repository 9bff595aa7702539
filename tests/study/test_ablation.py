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
from osteoprint.study.ablation import BASE, SCALES, SMALL, Scale, cases, run_ablation
from osteoprint.study.ablation_page import _points, table, write_ablation

TINY = Scale(
    "tiny", 5,
    dataclasses.replace(SMALL.settings, steps=2, bones_per_batch=3, views_per_bone=2),
    "resnet10t",
)  # fmt: skip
SOME = (BASE.name, "AP alone", "each bone fills its picture", "d = 16")


@pytest.fixture(scope="module")
def lines() -> list:
    assert FRAME.rows == 96
    bones = [make_bone(index) for index in range(5)]
    return run_ablation(
        bones, TINY, unseen=("cat 3", "cat 4"), seeds=(0, 1), only=SOME, accelerator="cpu"
    )


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


def test_every_case_and_seed_is_judged(lines: list) -> None:
    assert [(line.case.name, line.seed) for line in lines] == [
        (name, seed) for seed in (0, 1) for name in SOME
    ]
    for line in lines:
        assert 0 <= line.validation <= 1
        assert 0 <= line.unseen <= 1
        assert 0.4 < line.pairs <= 1
    # Not one network was the other's.
    assert len({(line.validation, line.unseen, line.pairs) for line in lines}) > 4


def test_the_page_and_the_json_say_the_same(lines: list, tmp_path: Path) -> None:
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


def test_one_bone_alone_cannot_be_told_from_others(tmp_path: Path) -> None:
    bones = [make_bone(index) for index in range(4)]
    alone = run_ablation(bones, TINY, unseen=("cat 3",), only=SOME[:2], accelerator="cpu")
    assert [(line.unseen, line.pairs) for line in alone] == [(None, None)] * 2
    values = write_ablation(tmp_path, alone, TINY, (3, 1), "One")
    assert json.loads((tmp_path / "ablation.json").read_text()) == values
    assert "<td>–</td><td>–</td>" in (tmp_path / "ablation.html").read_text()
    assert "nan" not in (tmp_path / "ablation.json").read_text().lower()


def test_a_file_is_no_folder(lines: list, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(InputError, match="is a file"):
        write_ablation(tmp_path / "x", lines, TINY, (3, 2), "")


def test_films_that_are_kept_are_not_taken_again(
    lines: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And networks trained beside each other are those trained one after the other."""
    bones = [make_bone(index) for index in range(5)]

    def again(at_once: int) -> list:
        return run_ablation(
            bones, TINY, unseen=("cat 3", "cat 4"), only=SOME[:3], accelerator="cpu",
            films_folder=tmp_path / "films", at_once=at_once,
        )  # fmt: skip

    first = again(at_once=1)
    monkeypatch.setattr(ablation_films, "_taken", lambda *_: pytest.fail("taken again"))
    second = again(at_once=2)
    kept = [line for line in lines if line.seed == 0][:3]
    for found in (first, second):
        assert [(f.case, f.validation, f.unseen, f.pairs) for f in found] == [
            (k.case, k.validation, k.unseen, k.pairs) for k in kept
        ]
        assert all(f.seconds > 0 for f in found)
