"""Unseen bones rebuilt from films, and the section of the report on them."""

from __future__ import annotations

import base64
import json
from functools import partial

import numpy as np
import pytest
from cats import make_bone

from osteoprint.errors import BankError
from osteoprint.shape.group import correspond
from osteoprint.study import rebuilding
from osteoprint.study.experiment import StudyBone
from osteoprint.study.markup import Figures
from osteoprint.study.modes_section import modes, modes_solid
from osteoprint.study.rebuilding import RebuildStudy, rebuild_study
from osteoprint.study.rebuilt_section import rebuilt
from osteoprint.study.report import plain
from osteoprint.study.solids import rebuilt_solids
from osteoprint.xray.standard import StandardFrame


@pytest.fixture(scope="module")
def bones() -> list[StudyBone]:
    picture = StandardFrame.for_length(130, 800)
    return [make_bone(k, seed=9, name="cat &", voxels=250, picture=picture) for k in range(5)]


@pytest.fixture(scope="module")
def study(bones) -> RebuildStudy:
    """On a coarse template of two bones: enough for what is said and shown of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rebuilding, "BASIS", 2)
        patch.setattr(rebuilding, "correspond", partial(correspond, vertices=1500))
        methods = ("refined", "laplacian")
        return rebuild_study(bones[:4], bones[4:], methods, preset="ideal", seed=1)


def test_every_method_is_measured(study):
    (found,) = study.rebuilt
    assert set(found) == {"refined", "laplacian"}
    assert found["refined"].distance.rms_relative < 0.008
    assert 0.0 <= found["refined"].held <= 1.0
    assert found["laplacian"].held is None
    said = json.loads(json.dumps(plain(study.to_json())))
    assert [m["method"] for m in said["methods"]] == ["refined", "laplacian"]
    assert said["methods"][0]["worst_rms_mm"] >= said["methods"][0]["rms_mm"]


def test_the_page_shows_them(study, bones):
    baselines = ("rms_mm", "best_rms_mm", "same_length_rms_mm", "mean_shape_rms_mm")
    values = plain({"rebuilt": study.to_json(), "summary": dict.fromkeys(baselines, 1.0)})
    solids = rebuilt_solids(study, [b.surface for b in bones[4:]])
    assert {"far", "sure"} <= set(solids["bones"][0]["match"])
    pictures = {"rebuilt": solids, "colours": [[0, 0, 0], [255, 255, 255]]}
    html = rebuilt(Figures(values), pictures)
    assert "cat &amp; 4" in html
    assert "how unsure" in html
    assert html.count("<article") == html.count("</article>") == 1
    assert html.count("<div") == html.count("</div>")


def test_the_page_shows_how_the_known_bones_vary(study):
    """A slider for each mode; mean and moves, packed alike, are the model's own."""
    solid = modes_solid(study.shapes)
    values = plain({"rebuilt": study.to_json()})
    assert values["rebuilt"]["model"]["shapes"] == 4
    assert sum(values["rebuilt"]["model"]["share"]) == pytest.approx(1.0)
    html = modes(Figures(values), {"modes": solid, "colours": [[0, 0, 0], [255, 255, 255]]})
    assert html.count('type="range"') == len(solid["moves"]) == 3
    assert html.count("<div") == html.count("</div>")

    def unpacked(text: str) -> np.ndarray:
        return np.frombuffer(base64.b64decode(text), "<i2").reshape(-1, 3).astype(float)

    at, moves = unpacked(solid["match"]["at"]), [unpacked(m) for m in solid["moves"]]
    assert {len(move) for move in moves} == {len(at)}
    # One SD of the first mode draws the bone out as much as it does the model.
    drawn = np.ptp((at + moves[0])[:, 0]) / np.ptp(at[:, 0])
    sd = study.shapes.instance(np.array([1.0]))
    assert drawn == pytest.approx(np.ptp(sd[:, 0]) / np.ptp(study.shapes.mean[:, 0]), abs=0.004)


def test_without_it_the_page_has_no_such_section():
    assert rebuilt(Figures({"rebuilt": None}), {}) == ""
    assert modes(Figures({"rebuilt": None}), {}) == ""
    assert rebuilt_solids(None, [])["bones"] == []


def test_too_few_known_bones_are_refused(bones):
    with pytest.raises(BankError, match="individuals"):
        rebuild_study(bones[:3], bones[4:], ("refined",))
