"""From a source to bones in a bank: surfaces, phantom scans, scans with a damaged slice."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from osteoprint.bank.intake import IntakeSettings, take_in
from osteoprint.bank.store import Bank
from osteoprint.ct.parametric import sample_bone
from osteoprint.ct.phantom import volume_from_surface
from osteoprint.ct.reading import read_scan, write_volume
from osteoprint.ct.volume import Volume
from osteoprint.errors import ScanError
from osteoprint.frames import Side, apply
from osteoprint.shape.alignment import align_rigid
from osteoprint.shape.distance import surface_distance


@pytest.fixture(scope="module")
def femur() -> trimesh.Trimesh:
    return sample_bone(np.random.default_rng(4), kind="femur", size="cat", side=Side.RIGHT)[0]


@pytest.fixture
def bank(tmp_path):
    with Bank.create(tmp_path / "bank") as opened:
        yield opened


def rms_mm(a: trimesh.Trimesh, b: trimesh.Trimesh) -> float:
    moved = a.copy()
    moved.apply_transform(align_rigid(a, b))
    return surface_distance(moved, b).rms_mm


def test_a_surface_is_kept_as_it_is_with_its_axes_and_a_scan(bank, femur, tmp_path):
    femur.export(tmp_path / "tom_R.ply")
    [(record, new)] = take_in(bank, tmp_path / "tom_R.ply", IntakeSettings()).bones
    assert new
    assert (record.name, record.individual, record.side) == ("tom_R", "tom", Side.RIGHT)
    assert any("taken from the file's name" in w for w in record.warnings)
    assert record.watertight
    kept = bank.surface(record)
    np.testing.assert_allclose(kept.vertices, femur.vertices, atol=1e-4)
    local = apply(np.linalg.inv(record.bone_to_world), kept.vertices)
    assert np.ptp(local[:, 0]) == pytest.approx(record.length_mm, abs=1e-6)
    np.testing.assert_allclose(local.min(axis=0) + local.max(axis=0), 0, atol=1e-6)
    volume = read_scan(bank.volume_path(record)).volume
    assert volume.spacing_mm == pytest.approx([record.length_mm / 450] * 3)


def test_the_same_source_twice_is_kept_once(bank, femur, tmp_path):
    femur.export(tmp_path / "tom.ply")
    (first, new), (again, new_again) = (
        take_in(bank, tmp_path / "tom.ply", IntakeSettings()).bones[0] for _ in range(2)
    )
    assert (new, new_again, first.id) == (True, False, again.id)
    assert len(bank.bones()) == 1


def scan(femur: trimesh.Trimesh) -> Volume:
    """A scan of the bone in the middle of some air, bone along k as on a CT table."""
    upright = femur.copy()
    upright.apply_transform(np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]]))
    axes = np.eye(4)
    return volume_from_surface(upright, voxel_mm=0.5, bone_to_world=axes, margin_mm=8)


def test_a_scan_gives_the_bone_that_was_in_it(bank, femur, tmp_path):
    write_volume(scan(femur), tmp_path / "cat.nrrd")
    settings = IntakeSettings(bone="femur", individual="cat")
    intake = take_in(bank, tmp_path / "cat.nrrd", settings)
    [(record, _)] = intake.bones
    assert (record.name, record.bone, record.side) == ("cat", "femur", Side.RIGHT)
    assert rms_mm(bank.surface(record), femur) < 0.25
    assert record.length_mm == pytest.approx(np.ptp(femur.vertices[:, 0]), abs=0.6)


def test_a_damaged_slice_does_not_cut_the_bone_and_is_not_repaired_unasked(
    bank, femur, tmp_path, monkeypatch
):
    whole = scan(femur)
    grid = whole.volume_hu.copy()
    place = grid.shape[2] // 2
    grid[:, :, place] = np.roll(grid[:, :, place], grid.shape[1] // 2, axis=1)
    import osteoprint.bank.intake as intake_module
    from osteoprint.ct.reading import Scan

    damaged = Scan(Volume(grid, whole.voxel_to_world), damaged=(place,))
    monkeypatch.setattr(intake_module, "read_scan", lambda *_a, **_k: damaged)
    write_volume(whole, tmp_path / "cat.nrrd")
    [(record, _)] = take_in(bank, tmp_path / "cat.nrrd", IntakeSettings(bone="femur")).bones
    assert any("damaged slice" in w and "--repair" in w for w in record.warnings)
    assert rms_mm(bank.surface(record), femur) < 0.25
    monkeypatch.undo()
    kept = read_scan(bank.volume_path(record)).volume
    row = (np.linalg.inv(kept.voxel_to_world) @ whole.voxel_to_world @ [0, 0, place, 1])[2]
    bone = kept.volume_hu[:, :, round(float(row))]
    near = kept.volume_hu[:, :, round(float(row)) + 1]
    # Its grey values are still the shifted ones: air where the neighbour is bone.
    assert (bone > -999).sum() < 0.5 * (near > -999).sum()


def test_nothing_is_kept_of_a_source_that_fails(bank, tmp_path):
    (tmp_path / "x.ply").write_bytes(b"ply\n")
    with pytest.raises(ScanError, match=r"x\.ply"):
        take_in(bank, tmp_path / "x.ply", IntakeSettings())
    assert bank.bones() == []


@pytest.mark.real
def test_two_real_legs_give_four_bones(bank, real_data, tmp_path):
    import tarfile

    with tarfile.open(real_data / "vhf_lower_legs" / "slices.tar.xz") as archive:
        archive.extractall(tmp_path / "legs", filter="data")
    intake = take_in(bank, tmp_path / "legs", IntakeSettings(individual="vhf", repair=True))
    found = {(r.bone, r.side): r for r, _ in intake.bones}
    assert set(found) == {(b, s) for b in ("tibia", "fibula") for s in Side}
    assert all(r.watertight for r in found.values())
    for side in Side:
        assert found["tibia", side].length_mm == pytest.approx(345, abs=5)
        assert 320 < found["fibula", side].length_mm < found["tibia", side].length_mm
    assert any("315" in w for w in intake.warnings)
