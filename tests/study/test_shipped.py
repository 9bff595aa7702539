"""The network that ships: what it is, and that it knows real bones it has never seen."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from osteoprint.bank.records import BoneRecord
from osteoprint.ct.phantom import volume_from_surface
from osteoprint.ct.surface import read_surface
from osteoprint.fingerprint.clinic_films import read_pair
from osteoprint.fingerprint.encoder import Network
from osteoprint.fingerprint.model import SHIPPED, Model, load_model
from osteoprint.fingerprint.samples import gallery_poses, random_pose, render_set, to_bytes
from osteoprint.frames import Side, anatomical_frame
from osteoprint.study.experiment import StudyBone, study_bone
from osteoprint.study.phantom_network import KINDS, PHANTOM_TRAINING, PHANTOMS
from osteoprint.xray.standard import StandardFrame

BONES, ASKED = 6, 4
# Of few bones and films: that it works at all. How well is measured, not tested, see
# benchmarks/out_of_the_box.py.
LEAST = {"ideal": 1.0, "clinic": 0.9}


@pytest.fixture(scope="module")
def shipped() -> Model:
    return load_model(SHIPPED)


def test_it_is_small_and_made_as_its_command_makes_it(shipped: Model) -> None:
    assert SHIPPED.stat().st_size <= 8e6
    card = shipped.card
    # ``osteoprint train --phantoms`` without any option has these settings.
    # A field of the network that there was not yet has the value that changes nothing.
    network = asdict(Network(**card.settings["network"]))
    wanted = json.loads(json.dumps(asdict(PHANTOM_TRAINING)))
    said = {"drawn": 0.0, "positive_candidates": 1} | card.settings | {"network": network}
    assert json.loads(json.dumps(said)) == wanted
    assert card.figures["steps"] == PHANTOM_TRAINING.steps
    assert card.trained_on["bones"] == [
        f"{size} {bone} {index}" for bone, size in KINDS for index in range(PHANTOMS)
    ]
    assert card.scale == "of the bank"


def test_it_tells_real_femora_apart(shipped: Model, real_data: Path) -> None:
    files = sorted((real_data / "smir_right_femora").glob("*.ply"))[:BONES]
    surfaces = [read_surface(path) for path in files]
    axes = [anatomical_frame(s.vertices, s.faces, bone="femur", side=Side.RIGHT) for s in surfaces]
    model = shipped.at_scale(max(a.length_mm for a in axes))
    frame = model.card.frame
    bones = []
    for path, surface, own in zip(files, surfaces, axes, strict=True):
        volume = volume_from_surface(surface, voxel_mm=2.0, bone_to_world=own.bone_to_world)
        bones.append(study_bone(_record(path, own.bone_to_world, own.length_mm), surface, volume,
                                frame))  # fmt: skip
    for kind, least in LEAST.items():
        answers = _answers(model, bones, frame, kind)
        assert np.mean(answers == np.arange(BONES)[:, None]) >= least, kind


def _answers(model: Model, bones: list[StudyBone], frame: StandardFrame, kind: str) -> np.ndarray:
    """(bones, ASKED) who is nearest; seven plain views of each are enrolled."""
    pictures = render_set([b.sample for b in bones], [gallery_poses()] * len(bones), frame)
    enrolled = np.stack([model.embed_bytes(block) for block in pictures])
    rng = np.random.default_rng(3)
    out = []
    for bone in bones:
        shown = [read_pair(bone.sample, random_pose(rng), frame, kind, rng) for _ in range(ASKED)]
        asked = model.embed_bytes(to_bytes(np.stack(shown)))
        out.append(np.einsum("ad,bvd->abv", asked, enrolled).max(axis=2).argmax(axis=1))
    return np.stack(out)


def _record(path: Path, matrix: np.ndarray, length_mm: float) -> BoneRecord:
    return BoneRecord(
        id=path.stem, name=path.stem, bone="femur", side=Side.RIGHT, individual=path.stem,
        length_mm=length_mm, watertight=True, warnings=(), source="", created="",
        surface_sha256="", volume_sha256=path.stem, bone_to_world=matrix,
    )  # fmt: skip
