"""A network made of phantoms alone, for banks of bones of any size."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from osteoprint.bank.records import NewBone
from osteoprint.bank.store import Bank
from osteoprint.fingerprint.model import Model, load_model, save_model
from osteoprint.study import calibration, enrolment, phantom_network
from osteoprint.study.demo import make_phantoms
from osteoprint.study.enrolment import enrol_bank
from osteoprint.study.phantom_network import KINDS, PHANTOM_TRAINING, ROOM, train_on_phantoms
from osteoprint.xray.standard import FRAME_ROOM

TINY = dataclasses.replace(
    PHANTOM_TRAINING, variants_per_bone=1, poses_per_variant=2, steps=2, bones_per_batch=2,
    presets=("ideal",),
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def few_films() -> Iterator[None]:
    """Thresholds are not what these tests are about: fewer films teach them, in less time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "_MOST", 2)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("films")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom_network, "_VOXEL_MM", 6.0)
        one, two = (train_on_phantoms(TINY, phantoms=2, films_folder=folder) for _ in range(2))
    again = two.encoder.state_dict()
    assert all(torch.equal(v, again[k]) for k, v in one.encoder.state_dict().items())
    return one


@pytest.fixture(scope="module")
def path(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    save_model(model, path, half=True)
    return path


@pytest.fixture(scope="module")
def enrolled(path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A bank of two bones, enrolled by one process, and what was said of that."""
    folder = tmp_path_factory.mktemp("banks") / "bank"
    with Bank.open(folder, write=True, create=True) as bank:
        make_phantoms(bank, ["a", "b"], 3, size="cat", voxels=150)
        return folder, enrol_bank(bank, path, load_model(path))


@pytest.fixture
def copied(enrolled: tuple[Path, dict[str, Any]], tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """The same in a folder of its own, to be changed."""
    folder, first = enrolled
    return Path(shutil.copytree(folder, tmp_path / "bank")), first


def test_it_knows_what_it_was_made_of(model: Model) -> None:
    card = model.card
    assert card.scale == "of the bank"
    assert card.frame.rows * card.frame.spacing_mm == pytest.approx(FRAME_ROOM * ROOM)
    bones = card.trained_on["bones"]
    assert len(bones) == 2 * len(KINDS)
    assert all("femur" in name or "tibia" in name for name in bones)


def test_a_bank_gets_it_at_its_own_scale(path: Path, copied: tuple[Path, dict[str, Any]]) -> None:
    folder, first = copied
    with Bank.open(folder, write=True) as bank:
        assert first["enrolled"] == 2
        longest = max(r.length_mm for r in bank.bones())
        card = bank.model().card
        assert card["scale"] == "fixed"
        room = card["frame"]["rows"] * card["frame"]["spacing_mm"] / FRAME_ROOM
        assert room == pytest.approx(ROOM * longest)
        # A bone that has room on the same scale joins those that are there.
        make_phantoms(bank, ["c"], 3, size="cat", voxels=150)
        again = enrol_bank(bank, path, load_model(path))
        assert (again["model"], len(bank.models())) == (first["model"], 1)
        # Made with the same settings, but not the same: fingerprints of the two never mix.
        other = load_model(path)
        with torch.no_grad():
            next(other.encoder.parameters()).add_(0.1)
        changed = enrol_bank(bank, path, other)
        assert changed["model"] != first["model"]
        assert (changed["enrolled"], len(bank.models())) == (3, 2)


def test_processes_enrol_as_one_does(
    path: Path,
    enrolled: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(enrolment, "_MANY", 1)
    monkeypatch.setattr(enrolment, "cores", lambda: 2)
    with Bank.open(enrolled[0]) as bank:
        one, known = bank.fingerprints(), bank.calibrations()
    with Bank.open(tmp_path / "several", write=True, create=True) as bank:
        make_phantoms(bank, ["a", "b"], 3, size="cat", voxels=150)
        enrol_bank(bank, path, load_model(path))
        several, same = bank.fingerprints(), bank.calibrations()
    assert one.bones == several.bones
    np.testing.assert_allclose(one.vectors, several.vectors, atol=1e-6)
    assert known is not None
    assert same is not None
    for one_has, other_has in ((known.nearest, same.nearest), (known.pairs, same.pairs)):
        assert one_has is not None
        assert other_has is not None
        assert other_has.threshold == pytest.approx(one_has.threshold, rel=1e-4)
        assert other_has.n_genuine == one_has.n_genuine > 0


def test_a_longer_bone_than_there_is_room_for_gets_all_a_new_scale(
    path: Path, copied: tuple[Path, dict[str, Any]]
) -> None:
    folder, first = copied
    with Bank.open(folder, write=True) as bank:
        bones = bank.bones()
        one = max(bones, key=lambda r: r.length_mm)
        surface = bank.surface(one)
        surface.vertices = surface.vertices * 1.2
        volume = bank.volume_path(one)
        matrix = np.array(one.bone_to_world)
        matrix[:3, 3] *= 1.2
        bank.add_bone(
            NewBone(
                name="long", individual="long", surface=surface, length_mm=1.2 * one.length_mm,
                bone_to_world=matrix, bone="femur", side=one.side, warnings=(), source="",
                volume=lambda target: _grown(volume, target),
            )
        )  # fmt: skip
        again = enrol_bank(bank, path, load_model(path))
        assert again["model"] != first["model"]
        assert again["enrolled"] == 3


def _grown(volume: Path, target: Path) -> None:
    """The scan with voxels a fifth larger."""
    from osteoprint.ct.reading import read_scan, write_volume
    from osteoprint.ct.volume import Volume

    scan = read_scan(volume).volume
    matrix = np.diag([1.2, 1.2, 1.2, 1.0]) @ scan.voxel_to_world
    write_volume(Volume(scan.volume_hu, matrix), target)
