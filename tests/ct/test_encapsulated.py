"""Surfaces inside DICOM: what goes in comes out, and an independent program finds no fault."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pydicom
import pytest
import trimesh

from osteoprint.ct.encapsulated import DicomLabels, stl_from_dicom, stl_to_dicom
from osteoprint.errors import ScanError

STL_CLASS = "1.2.840.10008.5.1.4.1.1.104.3"
LABELS = DicomLabels(
    patient_id="P-17",
    patient_name="Müller^Åsa",
    birth_date="19700131",
    sex="F",
    laterality="L",
    study_uid="1.2.3.4",
    frame_of_reference_uid="1.2.3.5",
    accession_number="A1",
    study_id="S1",
    study_date="20240229",
    study_time="120000",
    referring_physician="Roe^R",
    title="Left femur",
)


def ball_stl(subdivisions: int = 3) -> bytes:
    return trimesh.creation.icosphere(subdivisions=subdivisions, radius=20).export(file_type="stl")


@pytest.mark.parametrize("subdivisions", [1, 3])
@pytest.mark.parametrize("labels", [None, LABELS])
def test_the_same_bytes_come_back(
    tmp_path: Path, subdivisions: int, labels: DicomLabels | None
) -> None:
    stl = ball_stl(subdivisions)
    path = tmp_path / "ball.dcm"
    path.write_bytes(stl_to_dicom(stl, labels))
    assert stl_from_dicom(path) == (stl, 1.0)


def test_an_odd_length_is_padded_and_the_padding_taken_off(tmp_path: Path) -> None:
    box = trimesh.creation.box([30, 30, 30])
    stl = trimesh.Trimesh(box.vertices, box.faces[:11], process=False).export(file_type="stl")
    assert len(stl) % 2 == 0
    path = tmp_path / "box.dcm"
    path.write_bytes(stl_to_dicom(stl))
    data = pydicom.dcmread(path)
    data.EncapsulatedDocument = stl + b"x\0"
    data.EncapsulatedDocumentLength = len(stl) + 1
    data.save_as(path)
    assert stl_from_dicom(path)[0] == stl + b"x"


def test_what_the_object_says(tmp_path: Path) -> None:
    path = tmp_path / "ball.dcm"
    path.write_bytes(stl_to_dicom(ball_stl(), LABELS))
    data = pydicom.dcmread(path)
    assert data.SOPClassUID == data.file_meta.MediaStorageSOPClassUID == STL_CLASS
    assert data.SOPInstanceUID == data.file_meta.MediaStorageSOPInstanceUID
    assert data.MIMETypeOfEncapsulatedDocument == "model/stl"
    assert data.Modality == "M3D"
    assert data.MeasurementUnitsCodeSequence[0].CodeValue == "mm"
    assert str(data.PatientName) == LABELS.patient_name
    assert (data.PatientID, data.PatientSex, data.ImageLaterality) == ("P-17", "F", "L")
    assert (data.StudyInstanceUID, data.FrameOfReferenceUID) == ("1.2.3.4", "1.2.3.5")
    path.write_bytes(stl_to_dicom(ball_stl(), LABELS))
    again = pydicom.dcmread(path)
    assert again.SOPInstanceUID != data.SOPInstanceUID
    assert again.SeriesInstanceUID != data.SeriesInstanceUID


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools are not installed")
@pytest.mark.parametrize("labels", [None, LABELS])
def test_an_independent_validator_finds_no_error(
    tmp_path: Path, labels: DicomLabels | None
) -> None:
    path = tmp_path / "ball.dcm"
    path.write_bytes(stl_to_dicom(ball_stl(), labels))
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    report = done.stdout + done.stderr
    assert "EncapsulatedSTL" in report
    assert "Error" not in report
    assert done.returncode == 0
    if labels:
        assert "Warning" not in report


def test_what_is_no_stl_is_not_packed() -> None:
    for content in (b"", b"solid ball\nendsolid", ball_stl()[:-1]):
        with pytest.raises(ValueError, match="not a whole binary STL"):
            stl_to_dicom(content)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_files_that_hold_none_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.dcm"
    whole = stl_to_dicom(ball_stl())

    def refused(words: str) -> None:
        with pytest.raises(ScanError, match=words) as refusal:
            stl_from_dicom(path)
        assert "\n" not in str(refusal.value)

    for content in (b"junk", whole[:200], b"\0" * 128 + b"DICM" + b"\xff" * 300):
        path.write_bytes(content)
        refused("DICOM|no STL")
    path.write_bytes(whole)
    data = pydicom.dcmread(path)
    data.MeasurementUnitsCodeSequence[0].CodeValue = "[in_i]"
    data.save_as(path)
    refused("in the unit")
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    data.save_as(path)
    refused("holds no STL surface")
