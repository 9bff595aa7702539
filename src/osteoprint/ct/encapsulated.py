"""Surfaces inside DICOM: the Encapsulated STL Storage object, written and read.

A binary STL and who it belongs to, in one file that an archive (PACS) takes (DICOM PS3.3
A.85.1; SOP class 1.2.840.10008.5.1.4.1.1.104.3). Its coordinates are those of the frame of
reference it names, in the unit it names.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import EncapsulatedSTLStorage, ExplicitVRLittleEndian, generate_uid

from osteoprint.errors import ScanError

# UCUM codes of the unit an STL may be in, and what one of it is in mm.
MM_PER_UNIT = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001}
_DEFLATED = "1.2.840.10008.1.2.1.99"


@dataclass(frozen=True)
class DicomLabels:
    """Who and what a surface belongs to. Everything empty means: not known.

    Attributes
    ----------
    patient_id, patient_name : as the archive writes them (name as "Family^Given").
    birth_date : "YYYYMMDD"; sex : "M", "F", "O" or empty.
    laterality : "L", "R" or empty.
    study_uid, frame_of_reference_uid : of the images the surface was made from, so that the
        archive puts it beside them and viewers show it in place; None for new ones.
    accession_number, study_id, study_date, study_time, referring_physician : of that study.
    title : of the document, and the description of its series.
    """

    patient_id: str = ""
    patient_name: str = ""
    birth_date: str = ""
    sex: str = ""
    laterality: str = ""
    study_uid: str | None = None
    frame_of_reference_uid: str | None = None
    accession_number: str = ""
    study_id: str = ""
    study_date: str = ""
    study_time: str = ""
    referring_physician: str = ""
    title: str = "Bone surface"


def stl_to_dicom(stl: bytes, labels: DicomLabels | None = None) -> bytes:
    """A DICOM file around a binary STL in mm; :func:`stl_from_dicom` gives it back.

    The series and the object get new unique identifiers every time, as they must.

    Raises ValueError if `stl` is no whole binary STL or a label is no valid value.
    """
    if len(stl) < 84 or len(stl) != 84 + 50 * int.from_bytes(stl[80:84], "little"):
        raise ValueError("not a whole binary STL")
    labels = labels or DicomLabels()
    now = datetime.now(UTC)
    data = Dataset()
    data.SpecificCharacterSet = "ISO_IR 192"
    data.TimezoneOffsetFromUTC = "+0000"
    _describe_patient_and_study(data, labels)
    _describe_maker(data, labels)
    _describe_model(data, labels, now)
    data.EncapsulatedDocument = stl + b"\0" * (len(stl) % 2)
    data.EncapsulatedDocumentLength = len(stl)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    written = BytesIO()
    pydicom.dcmwrite(written, data, enforce_file_format=True)
    return written.getvalue()


def _describe_patient_and_study(data: Dataset, labels: DicomLabels) -> None:
    data.PatientID = labels.patient_id
    data.PatientName = labels.patient_name
    data.PatientBirthDate = labels.birth_date
    data.PatientSex = labels.sex
    data.StudyInstanceUID = labels.study_uid or generate_uid()
    data.StudyID = labels.study_id
    data.StudyDate = labels.study_date
    data.StudyTime = labels.study_time
    data.AccessionNumber = labels.accession_number
    data.ReferringPhysicianName = labels.referring_physician


def _describe_maker(data: Dataset, labels: DicomLabels) -> None:
    """The series, the program that made it, and the space it lies in."""
    data.Modality = "M3D"
    data.SeriesInstanceUID = generate_uid()
    data.SeriesNumber = 1
    data.SeriesDescription = labels.title
    data.FrameOfReferenceUID = labels.frame_of_reference_uid or generate_uid()
    data.PositionReferenceIndicator = ""
    data.Manufacturer = "osteoprint"
    data.ManufacturerModelName = "osteoprint"
    data.DeviceSerialNumber = "0"
    data.SoftwareVersions = _own_version()


def _describe_model(data: Dataset, labels: DicomLabels, now: datetime) -> None:
    """The document and what its numbers mean."""
    data.SOPClassUID = EncapsulatedSTLStorage
    data.SOPInstanceUID = generate_uid()
    data.InstanceNumber = 1
    data.InstanceCreationDate = data.ContentDate = now.strftime("%Y%m%d")
    data.InstanceCreationTime = data.ContentTime = now.strftime("%H%M%S")
    data.AcquisitionDateTime = ""
    data.BurnedInAnnotation = "NO"
    data.RecognizableVisualFeatures = "NO"
    if labels.laterality:
        data.ImageLaterality = labels.laterality
    data.DocumentTitle = labels.title
    data.ConceptNameCodeSequence = []
    data.MIMETypeOfEncapsulatedDocument = "model/stl"
    unit = Dataset()
    unit.CodeValue, unit.CodingSchemeDesignator, unit.CodeMeaning = "mm", "UCUM", "mm"
    data.MeasurementUnitsCodeSequence = [unit]
    data.ModelModification = "NO"
    data.ModelMirroring = "NO"


def _own_version() -> str:
    try:
        return version("osteoprint")
    except PackageNotFoundError:
        return "unknown"


def stl_from_dicom(path: Path) -> tuple[bytes, float]:
    """The STL inside a DICOM file, and what one of its units is in mm.

    Raises ScanError for a file that is no DICOM, holds no STL, or names an unknown unit.
    """
    damaged = ScanError(path, "not a readable DICOM file", "export the surface again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            syntax = str(read_file_meta_info(path).get("TransferSyntaxUID", ""))
            # What is deflated may inflate a thousandfold; surfaces are not sent so.
            data = None if syntax == _DEFLATED else pydicom.dcmread(path)
    except (Exception, RecursionError) as error:
        # pydicom raises whatever the broken bytes lead it to.
        raise damaged from error
    if data is None:
        raise ScanError(path, "is a deflated DICOM file", "export it uncompressed")
    if data.get("SOPClassUID") != EncapsulatedSTLStorage or "EncapsulatedDocument" not in data:
        raise ScanError(path, "holds no STL surface", "give an Encapsulated STL object")
    try:
        content = bytes(data.EncapsulatedDocument)
        length = int(data.get("EncapsulatedDocumentLength") or len(content))
        unit = str(data.MeasurementUnitsCodeSequence[0].CodeValue)
    except (Exception, RecursionError) as error:
        raise damaged from error
    if unit not in MM_PER_UNIT:
        raise ScanError(path, f"is in the unit {unit[:16]!r}", "export it in millimetres")
    return content[:length], MM_PER_UNIT[unit]
