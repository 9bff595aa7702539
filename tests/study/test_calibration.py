"""What distances prove is learnt from films that are not enrolled, of bones not learnt."""

from __future__ import annotations

import numpy as np
import pytest

from osteoprint.bank.records import BoneRecord
from osteoprint.bank.search import Fingerprints
from osteoprint.ct.parametric import sample_bone
from osteoprint.ct.phantom import volume_from_surface
from osteoprint.fingerprint.encoder import Encoder, Network
from osteoprint.fingerprint.gallery import GALLERY_KEYS
from osteoprint.fingerprint.model import Model, ModelCard
from osteoprint.frames import Side, anatomical_frame, apply
from osteoprint.study.calibration import (
    Asked,
    ask,
    between_pairs,
    calibrations,
    pairs_of_each,
    show,
    show_changed,
    to_the_bank,
)
from osteoprint.study.experiment import StudyBone, study_bone
from osteoprint.xray.standard import StandardFrame


def record(name: str, person: str, side: Side = Side.RIGHT, kind: str = "femur") -> BoneRecord:
    return BoneRecord(
        id=name, name=name, bone=kind, side=side, individual=person, length_mm=450.0,
        watertight=True, warnings=(), source="", created="", surface_sha256="",
        volume_sha256=None, bone_to_world=np.eye(4),
    )  # fmt: skip


def at(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def far(degrees: float) -> float:
    return float(2.0 - 2.0 * np.cos(np.radians(degrees)))


def test_a_stranger_is_of_another_person_and_a_copys_own_films_are_its_own():
    bones = [record("a", "one"), record("b", "one", Side.LEFT), record("c", "two")]
    bank = Fingerprints.from_rows(["a", "b", "c"], ["z"] * 3, at(0, 5, 60))
    # A copy of "a" lies between it and its person's other bone, and has views of its own.
    asked = [
        Asked(bones[0], at(3), at(4, 6), changed=True),
        Asked(bones[1], at(5), at(5, 7), changed=False),
        Asked(bones[2], at(60), at(60, 62), changed=False),
    ]
    found = to_the_bank(asked, bank)
    assert found is not None
    # Own films lie up to 3 degrees off, strangers from 53 on: neither the bank's "a", 4 degrees
    # from its copy, nor "b" counts as one.
    assert found.eer == 0.0
    assert found.n_genuine == found.n_impostor == 3
    assert far(3) < found.threshold < far(53)
    assert found.eer_threshold == pytest.approx((far(3) + far(53)) / 2, rel=1e-3)
    pairs = between_pairs(asked)
    assert pairs.eer_threshold == pytest.approx((far(2) + far(53)) / 2, rel=1e-3)


def test_few_bones_are_asked_more_about_each():
    assert [pairs_of_each(n) for n in (1, 2, 24, 50, 51, 1000)] == [24, 24, 17, 8, 8, 8]


def test_one_individual_alone_proves_nothing():
    bones = [record("a", "one"), record("b", "one", Side.LEFT)]
    bank = Fingerprints.from_rows(["a", "b"], ["z"] * 2, at(0, 5))
    asked = [Asked(b, at(0), at(1, 2), changed=False) for b in bones]
    assert to_the_bank(asked, bank) is None


def test_each_kind_of_bone_has_thresholds_of_its_own():
    """Films of one tibia lie farther apart than those of two fibulae."""
    at_degrees = {
        "t1": ("tibia", "one", 0, (8, -8)), "t2": ("tibia", "two", 40, (32, 48)),
        "f1": ("fibula", "one", 180, (181, 179)), "f2": ("fibula", "two", 186, (185, 187)),
        "m1": ("humerus", "one", 270, (271, 269)),
    }  # fmt: skip
    bank = Fingerprints.from_rows(
        list(at_degrees), ["z"] * 5, at(*(place for _, _, place, _ in at_degrees.values()))
    )
    asked = [
        Asked(record(name, person, kind=kind), at(place), at(*films), changed=False)
        for name, (kind, person, place, films) in at_degrees.items()
    ]
    found = calibrations(asked, bank)
    assert found is not None
    # One humerus alone tells nothing of humeri: for it stands what holds of all.
    assert set(found.kinds) == {"tibia", "fibula"}
    assert found.of("humerus") is found
    assert far(8) < found.of("tibia").nearest.threshold < far(32)
    assert far(1) < found.of("fibula").nearest.threshold < far(5)
    assert found.of("tibia").nearest.eer == found.of("fibula").nearest.eer == 0.0
    # Without kinds no threshold is right for both.
    assert found.nearest.eer > 0.0
    assert found.pairs is not None
    assert found.pairs.eer > 0.0
    for kind in found.kinds:
        pairs = found.of(kind).pairs
        assert pairs is not None
        assert pairs.eer == 0.0
    alike = [a for a in asked if a.record.bone == "tibia"]
    alone = calibrations(alike, bank.only(["t1", "t2"]))
    assert alone is not None
    assert not alone.kinds
    assert alone.nearest == found.of("tibia").nearest


@pytest.fixture(scope="module")
def bone() -> StudyBone:
    surface, _ = sample_bone(np.random.default_rng(0), kind="femur", size="human", side=Side.RIGHT)
    axes = anatomical_frame(surface.vertices, surface.faces, bone="femur", side=Side.RIGHT)
    surface.vertices = apply(axes.world_to_bone, np.asarray(surface.vertices))
    volume = volume_from_surface(
        surface, voxel_mm=3.0, bone_to_world=np.eye(4), rng=np.random.default_rng(1)
    )
    return study_bone(record("a", "one"), surface, volume, StandardFrame.for_length(500.0))


def test_a_changed_copy_is_enrolled_with_its_own_films_and_made_alike_again(bone: StudyBone):
    network = Network(contrast=True, reductions=())
    card = ModelCard(network, StandardFrame.for_length(500.0), "triplet", {"bones": []}, {})
    model = Model(Encoder(network), card)
    picture, lengths = card.frame, (420.0, 480.0)
    copy, again = (show_changed(bone.sample, picture, 3, lengths) for _ in range(2))
    itself = show(bone.sample, picture, 3)
    assert copy.own is not None
    assert again.own is not None
    assert itself.own is None
    assert copy.own.shape == (len(GALLERY_KEYS), 2, picture.rows, picture.columns)
    np.testing.assert_array_equal(copy.own, again.own)
    np.testing.assert_array_equal(copy.probes, again.probes)
    # Same poses, another bone; and other poses with another seed.
    assert itself.probes.shape == copy.probes.shape == (3, 2, picture.rows, picture.columns)
    assert np.abs(itself.probes - copy.probes).max() > 0.05
    other = show(bone.sample, picture, 3, seed=1)
    assert np.abs(itself.probes - other.probes).max() > 0.05
    as_enrolled = at(0)
    found = ask(model, bone.record, as_enrolled, itself)
    assert not found.changed
    assert found.own is as_enrolled
    assert found.probes.shape == (3, 128)
    changed = ask(model, bone.record, as_enrolled, copy)
    assert changed.changed
    assert changed.own.shape == (len(GALLERY_KEYS), 128)
