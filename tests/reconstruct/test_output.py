"""Every format that is written is read back as the surface it was, in mm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import trimesh

from osteoprint.ct.encapsulated import DicomLabels
from osteoprint.ct.parametric import sample_bone
from osteoprint.ct.surface import read_surface
from osteoprint.errors import InputError, ScanError
from osteoprint.reconstruct.output import SURFACE_FORMATS, write_surface


def bone() -> trimesh.Trimesh:
    mesh, _ = sample_bone(np.random.default_rng(0))
    return mesh.apply_translation([100.0, -250.0, 900.0])


@pytest.mark.parametrize("ending", SURFACE_FORMATS)
def test_a_surface_comes_back_in_mm(tmp_path: Path, ending: str) -> None:
    path, mesh = tmp_path / f"bone{ending}", bone()
    before = np.array(mesh.vertices)
    write_surface(mesh, path)
    back = read_surface(path)
    assert np.array_equal(mesh.vertices, before)
    assert back.is_watertight
    assert len(back.vertices) == len(mesh.vertices)
    assert len(back.faces) == len(mesh.faces)
    # 32 bits: 0.00006 mm at 1 m.
    assert back.bounds == pytest.approx(mesh.bounds, abs=2e-4)
    assert back.volume == pytest.approx(mesh.volume, rel=1e-5)
    assert list(tmp_path.iterdir()) == [path]


def test_glb_is_in_metres_for_everyone_else(tmp_path: Path) -> None:
    write_surface(bone(), tmp_path / "bone.glb")
    assert 0.3 < np.ptp(trimesh.load_mesh(tmp_path / "bone.glb").vertices, axis=0).max() < 0.6


def test_dicom_carries_its_labels(tmp_path: Path) -> None:
    path = tmp_path / "bone.dcm"
    write_surface(bone(), path, labels=DicomLabels(patient_id="P-17", title="Right femur"))
    data = pydicom.dcmread(path)
    assert (data.PatientID, data.DocumentTitle) == ("P-17", "Right femur")


@pytest.mark.parametrize("ending", SURFACE_FORMATS)
def test_a_surface_that_is_not_closed_is_not_written(tmp_path: Path, ending: str) -> None:
    mesh = bone()
    mesh.update_faces(np.arange(len(mesh.faces)) > 3)
    with pytest.raises(ScanError, match="has holes"):
        write_surface(mesh, tmp_path / f"bone{ending}")
    assert list(tmp_path.iterdir()) == []


def test_unknown_endings_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no surface format"):
        write_surface(bone(), tmp_path / "bone.obj")
    with pytest.raises(InputError, match="cannot be written"):
        write_surface(bone(), tmp_path / "none" / "bone.stl")


def test_a_glb_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bone.glb"
    write_surface(bone(), path)
    content = path.read_bytes()
    table = b'"count":'
    at = content.index(table) + len(table)
    digits = len(content[at:].split(b",")[0].split(b"}")[0])
    path.write_bytes(content[:at] + b"9" * digits + content[at + digits :])
    with pytest.raises(ScanError, match="not a readable GLB"):
        read_surface(path)
    for broken in (content[:100], b"glTF" + bytes(100), content[: len(content) // 2]):
        path.write_bytes(broken)
        with pytest.raises(ScanError, match="not a readable GLB"):
            read_surface(path)
