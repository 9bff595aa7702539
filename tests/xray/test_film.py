"""Films: written and read back; polarity, intensity, DICOM; what is missing is an error."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from osteoprint.errors import FilmError
from osteoprint.frames import Side, View
from osteoprint.xray.camera import Geometry
from osteoprint.xray.film import read_film, write_film
from osteoprint.xray.radiograph import Radiograph

GEOMETRY = Geometry(60, 40, (0.3, 0.4), 1150.0, 1000.0)
IMAGE = np.random.default_rng(0).uniform(0, 2, (60, 40)).astype(np.float32)
FILM = Radiograph(IMAGE, GEOMETRY, View.ML, Side.LEFT, "simulated")


@pytest.mark.parametrize(
    "geometry", [GEOMETRY, Geometry(60, 40, (0.3, 0.4), np.inf, np.inf)], ids=["cone", "parallel"]
)
def test_written_and_read_back(tmp_path, geometry):
    write_film(Radiograph(IMAGE, geometry, View.ML, Side.LEFT, "s"), tmp_path / "a.png")
    back = read_film(tmp_path / "a.png", View.ML)
    assert back.geometry == geometry
    assert (back.view, back.side) == (View.ML, Side.LEFT)
    np.testing.assert_allclose(back.image / 65535 * IMAGE.max(), IMAGE, atol=2e-5)


def sidecar(path, **changes):
    facts = json.loads((path.parent / (path.name + ".json")).read_text()) | changes
    (path.parent / (path.name + ".json")).write_text(json.dumps(facts))


def test_dark_bone_is_turned_around(tmp_path):
    path = tmp_path / "a.png"
    write_film(FILM, path)
    bright = read_film(path, View.ML).image
    Image.fromarray((65535 - np.asarray(Image.open(path)).astype(int)).astype(np.uint16)).save(path)
    sidecar(path, polarity="bone_dark")
    dark = read_film(path, View.ML).image
    np.testing.assert_allclose(dark - dark.min(), bright - bright.min())


def test_a_transmitted_fraction_becomes_a_line_integral(tmp_path):
    path = tmp_path / "a.png"
    write_film(FILM, path)
    fraction = np.exp(-IMAGE.astype(float))
    Image.fromarray((fraction * 65535).astype(np.uint16)).save(path)
    sidecar(path, intensity="linear")
    found = read_film(path, View.ML).image
    np.testing.assert_allclose(found - found.min(), IMAGE - IMAGE.min(), atol=2e-3)


@pytest.mark.parametrize("suffix", [".tif", ".jpg"])
def test_other_picture_formats(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_film(FILM, tmp_path / "a.png")
    (tmp_path / f"a{suffix}.json").write_text((tmp_path / "a.png.json").read_text())
    grey = (IMAGE / 2 * 255).astype(np.uint8)
    Image.fromarray(grey).save(path, **({"quality": 100} if suffix == ".jpg" else {}))
    np.testing.assert_allclose(read_film(path, View.ML).image, grey, atol=8)


def dicom_film(path, **tags):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    stored = (IMAGE * 1000).astype(np.uint16)
    values = {
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": "DX",
        "Rows": 60,
        "Columns": 40,
        "SamplesPerPixel": 1,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "PhotometricInterpretation": "MONOCHROME2",
        "ImagerPixelSpacing": [0.3, 0.4],
        "DistanceSourceToDetector": 1150,
        "DistanceSourceToPatient": 1000,
        "ImageLaterality": "L",
        **tags,
    }
    for key, value in values.items():
        if value is not None:
            setattr(data, key, value)
    data.PixelData = stored.tobytes()
    data.save_as(path, enforce_file_format=True)
    return stored


def test_a_dicom_film_says_everything_itself(tmp_path):
    stored = dicom_film(tmp_path / "a.dcm")
    film = read_film(tmp_path / "a.dcm", View.ML)
    assert film.geometry == GEOMETRY
    assert film.side is Side.LEFT
    np.testing.assert_array_equal(film.image, stored)


def test_monochrome1_is_bone_dark(tmp_path):
    stored = dicom_film(tmp_path / "a.dcm", PhotometricInterpretation="MONOCHROME1")
    film = read_film(tmp_path / "a.dcm", View.AP)
    np.testing.assert_array_equal(film.image, stored.max() - stored.astype(np.float32))


def test_a_sidecar_adds_what_a_dicom_film_lacks(tmp_path):
    dicom_film(tmp_path / "a.dcm", DistanceSourceToPatient=None)
    with pytest.raises(FilmError, match="sod_mm"):
        read_film(tmp_path / "a.dcm", View.AP)
    (tmp_path / "a.dcm.json").write_text('{"sod_mm": 1000.0}')
    assert read_film(tmp_path / "a.dcm", View.AP).geometry == GEOMETRY


def test_a_header_that_claims_too_much_is_refused_unread(tmp_path):
    dicom_film(tmp_path / "a.dcm", Rows=60000, Columns=60000)
    with pytest.raises(FilmError, match="60000"):
        read_film(tmp_path / "a.dcm", View.AP)
