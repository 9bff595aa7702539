"""The paper's experiments on a handful of bones: all there, and told alike by page and JSON."""

from __future__ import annotations

import dataclasses
import html
import json
from pathlib import Path

import numpy as np
import pytest
from cats import make_bone

from osteoprint.fingerprint.samples import PairPose
from osteoprint.fingerprint.settings import TrainingSettings
from osteoprint.fingerprint.transfer import TransferSettings
from osteoprint.study import paper
from osteoprint.study.ablation import BASE, SMALL, Scale
from osteoprint.study.experiment import StudySettings
from osteoprint.study.paper import SPLITS, PaperScale, PaperStudy, classify, run_paper
from osteoprint.study.paper_page import write_paper
from osteoprint.xray.camera import Pose

TRAINING = TrainingSettings(
    steps=3, variants_per_bone=1, poses_per_variant=2, bones_per_batch=3, views_per_bone=2,
    presets=("ideal",), accelerator="cpu",
)  # fmt: skip
TINY = PaperScale(
    "tiny <1>",
    (-9.0, -3.0, 3.0, 9.0),
    (146.0, 158.0),
    Scale("tiny", 5, dataclasses.replace(SMALL.settings, steps=1), "resnet10t"),
    (TransferSettings("resnet50", steps=1, batch=2, pretrained=False),),
    5,
)


@pytest.fixture(scope="module")
def study() -> PaperStudy:
    bones = [make_bone(index) for index in range(5)]
    settings = StudySettings(unseen=("cat 3", "cat 4"), training=TRAINING, probes=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("osteoprint.study.ablation.cases", lambda scale: [BASE])
        return run_paper(bones, settings, TINY)


def test_every_experiment_was_done(study: PaperStudy) -> None:
    assert len(study.classified) == 2 * 2 * len(SPLITS)
    assert len(study.separations) == len(study.dots) == 6
    assert study.separations[-1].films == 2 * 32
    assert study.attention.maps.shape[0] == 3
    assert [t["backbone"] for t in study.transfer] == ["resnet50"]
    assert [line.case for line in study.ablation] == [BASE]


def test_page_and_json_say_the_same(study: PaperStudy, tmp_path: Path) -> None:
    values = write_paper(tmp_path / "out", study, "Cats & others")
    assert json.loads((tmp_path / "out" / "paper.json").read_text()) == values
    page = (tmp_path / "out" / "paper.html").read_text()
    assert "Cats &amp; others" in page
    assert "tiny &lt;1&gt;" in page
    for row in values["rows"]:
        assert html.escape(row["ours"]) in page
    # Two bones twice, attention, maps, windows, two alignments and the worst one.
    assert page.count("data:image/webp") == 4 + 3 + 3
    assert "shape rebuilt from two films" in page
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_split_asks_about_nothing_that_is_enrolled() -> None:
    poses = [
        PairPose(Pose(turn, tip), Pose(turn, tip), kev)
        for turn in TINY.angles_deg for tip in TINY.angles_deg for kev in TINY.energies_kev
    ]  # fmt: skip
    turns = np.array([p.ap.long_deg for p in poses])
    energies = np.array([p.energy_kev for p in poses])
    angle = paper._enrolled(poses, "angle", 0)
    assert not set(turns[angle]) & set(turns[~angle])
    energy = paper._enrolled(poses, "energy", 0)
    assert not set(energies[energy]) & set(energies[~energy])
    enrolled, asked = paper._split(poses, "one view", 0)
    assert enrolled.sum() == 1
    straight = poses[int(np.argmax(enrolled))].ap
    assert all(pose.ap != straight for pose, yes in zip(poses, asked, strict=True) if yes)
    assert asked.sum() == len(poses) - len(TINY.energies_kev)
    assert paper._enrolled(poses, "random", 0).mean() == pytest.approx(0.8, abs=0.02)


def test_fingerprints_of_bones_apart_are_all_classified_right() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(8)[:3]
    poses = [PairPose(Pose(t, 0.0), Pose(t, 0.0), k) for t in range(8) for k in (60.0, 70.0)]
    prints = centres[:, None] + rng.normal(0, 0.02, (3, len(poses), 8))
    prints /= np.linalg.norm(prints, axis=2, keepdims=True)
    right = classify(prints.astype(np.float32), poses, "known", 0)
    assert all(c.right == 1.0 for c in right)
    noise = rng.normal(size=prints.shape)
    noise /= np.linalg.norm(noise, axis=2, keepdims=True)
    assert all(c.right < 0.8 for c in classify(noise.astype(np.float32), poses, "known", 0))
