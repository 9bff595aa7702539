"""Small series and grids made here, whole and broken in every way; then the real one."""

from __future__ import annotations

import gzip
import io
import re
import struct
import tarfile
import zlib
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    generate_uid,
)

from osteoprint.ct import reading
from osteoprint.ct.reading import read_scan, write_volume
from osteoprint.ct.series import arrange, find_damaged
from osteoprint.ct.volume import Volume
from osteoprint.errors import ScanError

COLUMNS, ROWS, SLICES = 14, 10, 20
ORIGIN = np.array([-30.0, 40.0, 100.0])
SERIES = generate_uid()


def content() -> np.ndarray:
    """(I, J, K) int16 HU: a rod that drifts slowly from slice to slice, and noise."""
    i, j, k = np.indices((COLUMNS, ROWS, SLICES)).astype(float)
    rod = 1200 * np.exp(-((i - 5 - 0.1 * k) ** 2 + (j - 4) ** 2) / 6) - 900
    return np.rint(rod + np.random.default_rng(1).normal(0, 5, rod.shape)).astype(np.int16)


def dataset(k: int, hu: np.ndarray, **changes: object) -> pydicom.Dataset:
    """Slice k: rows 0.8 mm apart, columns 0.5, slices 1.25."""
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.Modality, data.SeriesInstanceUID, data.SeriesDescription = "CT", SERIES, "Bone"
    data.InstanceNumber = 1000 - (k * 7) % SLICES  # says nothing
    data.ImagePositionPatient = [*ORIGIN[:2], ORIGIN[2] + 1.25 * k]
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.PixelSpacing = [0.8, 0.5]
    data.Rows, data.Columns, data.SamplesPerPixel = ROWS, COLUMNS, 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.PixelData = (hu[:, :, k].T.astype(np.int32) + 1024).astype(np.uint16).tobytes()
    for name, value in changes.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    return data


def save(folder: Path, k: int, hu: np.ndarray, name: str = "", **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or f"{(k * 7) % SLICES:03d}.dcm")
    dataset(k, hu, **changes).save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def series(tmp_path: Path) -> Path:
    folder = tmp_path / "scan"
    for k in range(SLICES):
        save(folder, k, content())
    return folder


def path_of(folder: Path, k: int) -> Path:
    return folder / f"{(k * 7) % SLICES:03d}.dcm"


def refused(source: Path, *words: str, **options: object) -> None:
    """The scan is refused in one line that names the input and says all the words."""
    with pytest.raises(ScanError) as refusal:
        read_scan(source, **options)  # type: ignore[arg-type]
    message = str(refusal.value)
    assert message.startswith(f"{source}: ")
    assert "\n" not in message
    for word in words:
        assert word in message
    assert refusal.value.fix


def test_slices_are_ordered_by_position_and_placed(series: Path) -> None:
    scan = read_scan(series)
    assert scan.warnings == ()
    assert scan.series_uid == SERIES
    assert scan.description == "Bone"
    assert scan.volume.volume_hu.dtype == np.int16
    assert np.array_equal(scan.volume.volume_hu, content())
    expected = np.diag([0.5, 0.8, 1.25, 1.0])
    expected[:3, 3] = ORIGIN
    assert np.allclose(scan.volume.voxel_to_world, expected)


def test_company_in_deeper_folders_is_left_out_and_counted(series: Path) -> None:
    (series / "notes.txt").write_text("hello")
    (series / "empty.dcm").touch()
    save(series / "a" / "b", 3, content(), "scout.dcm", ImageType=["ORIGINAL", "LOCALIZER"])
    save(series / "a", 3, content(), "mr.dcm", Modality="MR")
    save(series / "a", 3, content(), "other.dcm", SeriesInstanceUID=generate_uid())
    (said,) = read_scan(series).warnings
    for word in ("1 empty", "1 not DICOM", "1 localizer", "1 modality MR", "1 of other series"):
        assert word in said
    assert np.array_equal(read_scan(series).volume.volume_hu, content())


def test_slope_and_intercept_are_each_slices_own(tmp_path: Path) -> None:
    hu = content()
    for k in range(SLICES):
        save(tmp_path, k, hu, RescaleIntercept=-1024 + k)
    got = read_scan(tmp_path).volume.volume_hu
    assert np.array_equal(got, hu + np.arange(SLICES, dtype=np.int16))
    for k in range(SLICES):
        save(tmp_path, k, hu, RescaleSlope=1.5)
    got = read_scan(tmp_path).volume.volume_hu
    assert got.dtype == np.float32
    assert np.allclose(got, (hu + 1024.0) * 1.5 - 1024)


def test_padding_is_air(tmp_path: Path) -> None:
    hu = content()
    hu[0] = -3000
    for k in range(SLICES):
        data = dataset(k, hu, PixelRepresentation=1, RescaleIntercept=0)
        data.PixelData = hu[:, :, k].T.tobytes()
        data.save_as(tmp_path / f"{k}.dcm", enforce_file_format=True)
    got = read_scan(tmp_path).volume.volume_hu
    assert (got[0] == -1024).all()
    assert np.array_equal(got[1:], hu[1:])


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEGLosslessProcess14_1", "JPEGLSLossless",
                                    "JPEG2000Lossless"])  # fmt: skip
def test_compressed_slices(tmp_path: Path, syntax: str) -> None:
    for k in range(SLICES):
        path = save(tmp_path, k, content(), BitsStored=12, HighBit=11)
        reader, writer = gdcm.ImageReader(), gdcm.ImageWriter()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetImage(change.GetOutput())
        writer.SetFile(reader.GetFile())
        writer.SetFileName(str(path))
        assert writer.Write()
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID.is_compressed
    assert np.array_equal(read_scan(tmp_path).volume.volume_hu, content())


def test_shear_of_a_tilted_gantry_is_kept_and_told(tmp_path: Path) -> None:
    tilt = np.radians(10)
    orientation = [1, 0, 0, 0, np.cos(tilt), np.sin(tilt)]
    for k in range(SLICES):
        save(tmp_path, k, content(), ImageOrientationPatient=orientation)
    scan = read_scan(tmp_path)
    assert any("10.00°" in text for text in scan.warnings)
    matrix = scan.volume.voxel_to_world
    assert np.allclose(matrix[:3, 1], 0.8 * np.array(orientation[3:]))
    assert np.allclose(matrix[:3, 2], [0, 0, 1.25])
    with pytest.raises(ValueError, match="sheared"):
        write_volume(scan.volume, tmp_path / "tilted.nrrd")


def test_oblique_and_downward_series() -> None:
    orientation = np.array([[0.0, 1, 0], [0, 0, -1]])  # sagittal; normal along -x
    positions = np.array([[5.0 - 2 * k, 1, 2] for k in range(6)])
    place = arrange("s", positions[[3, 0, 5, 1, 4, 2]], orientation, (0.7, 0.9))
    assert place.order == (1, 3, 5, 0, 4, 2)
    assert place.tilt_deg == 0
    assert np.allclose(place.voxel_to_world[:3, :3].T, [[0, 0.9, 0], [0, 0, -0.7], [-2, 0, 0]])
    assert np.linalg.det(place.voxel_to_world[:3, :3]) > 0


def test_a_missing_slice_is_an_error_unless_repaired(series: Path) -> None:
    path_of(series, 8).unlink()
    refused(series, "1 of 20 slices missing", "110 mm", "--repair")
    scan = read_scan(series, repair=True)
    assert any("interpolated missing slices at 110 mm" in text for text in scan.warnings)
    truth = content()
    between = np.rint((truth[:, :, 7].astype(float) + truth[:, :, 9]) / 2)
    assert np.array_equal(scan.volume.volume_hu[:, :, 8], between)
    assert np.array_equal(np.delete(scan.volume.volume_hu, 8, 2), np.delete(truth, 8, 2))
    for k in (9, 10, 11):
        path_of(series, k).unlink()
    refused(series, "4 of 20", "too many", repair=True)


def test_doubled_slices(series: Path) -> None:
    save(series, 5, content(), "again.dcm")
    scan = read_scan(series)
    assert "dropped 1 doubled slices" in scan.warnings
    assert np.array_equal(scan.volume.volume_hu, content())
    save(series, 5, content() + 1, "again.dcm")
    refused(series, "two different slices at 106.25 mm", "again.dcm", path_of(series, 5).name)


def test_uneven_slices_and_strays(series: Path) -> None:
    save(series, 19, content(), path_of(series, 19).name,
         ImagePositionPatient=[*ORIGIN[:2], ORIGIN[2] + 1.25 * 19.4])  # fmt: skip
    refused(series, "unevenly spaced", "122.5 mm")
    save(series, 19, content(), path_of(series, 19).name,
         ImagePositionPatient=[*(ORIGIN[:2]), ORIGIN[2] + 1.25 * 19])  # fmt: skip
    save(series, 9, content(), path_of(series, 9).name,
         ImagePositionPatient=[ORIGIN[0] + 6, ORIGIN[1], ORIGIN[2] + 1.25 * 9])  # fmt: skip
    refused(series, "do not follow a line", "111.25 mm")


def test_a_damaged_slice_is_named_and_repaired_on_request(series: Path) -> None:
    broken = content()
    broken[:, :, 12] = np.roll(broken[:, :, 12], 5, axis=1)
    save(series, 12, broken, path_of(series, 12).name)
    scan = read_scan(series)
    (said,) = scan.warnings
    assert "115 mm" in said
    assert path_of(series, 12).name in said
    assert "--repair" in said
    assert scan.damaged == (12,)
    assert np.array_equal(scan.volume.volume_hu, broken)
    mended = read_scan(series, repair=True)
    assert mended.damaged == ()
    assert "interpolated" in mended.warnings[0]
    assert np.abs(mended.volume.volume_hu[:, :, 12] - content()[:, :, 12]).max() < 40
    assert np.array_equal(np.delete(mended.volume.volume_hu, 12, 2), np.delete(content(), 12, 2))


def test_damage_is_not_seen_where_there_is_none() -> None:
    rng = np.random.default_rng(5)
    noise = rng.normal(0, 30, (40, 30, 30))
    assert find_damaged(noise.astype(np.float32)) == []
    step = noise + np.where(np.arange(40) < 17, 0.0, 900.0)[:, None, None]  # an end plate
    assert find_damaged(step.astype(np.float32)) == []
    assert find_damaged(np.zeros((40, 30, 30), np.int16)) == []
    noise[22] = -1000
    assert find_damaged(noise.astype(np.float32)) == [22]


def test_several_series_must_be_chosen_from(series: Path) -> None:
    other = generate_uid()
    for k in range(SLICES):
        save(series / "second", k, content() + 7, SeriesInstanceUID=other, SeriesDescription="Soft")
    refused(series, "2 CT series", "--series", other, SERIES, "Soft, 20 slices")
    refused(series, "no single series 'Lung'", SERIES, series="Lung")
    for name in (other, "Soft"):
        assert np.array_equal(read_scan(series, series=name).volume.volume_hu, content() + 7)


def test_folders_that_are_no_scan(tmp_path: Path) -> None:
    refused(tmp_path / "none", "no such file or folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, "the folder is empty")
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.jpg", "b.png"):
        (photos / name).write_bytes(b"\xff\xd8\xff" * 100)
    refused(photos, "no CT image", "2 not DICOM")
    save(tmp_path / "one", 0, content())
    refused(tmp_path / "one", "at least 16 slices")
    refused(tmp_path / "one", "a single slice", series="Bone")
    for k in range(SLICES):
        save(tmp_path / "mr", k, content(), Modality="MR")
        save(tmp_path / "flat", k, content(), PixelSpacing=[0, 0.5])
        save(tmp_path / "place", k, content(), ImagePositionPatient=ORIGIN.tolist())
        save(tmp_path / "soft", k, np.minimum(content(), 90))
        save(tmp_path / "skew", k, content(), ImageOrientationPatient=[1, 0, 0, 1, 0, 0])
        save(tmp_path / "bare", k, content(), RescaleSlope=None)
    refused(tmp_path / "mr", "20 modality MR")
    refused(tmp_path / "flat", "pixel spacing 0 x 0.5 mm")
    refused(tmp_path / "place", "all slices lie in one place")
    refused(tmp_path / "soft", "nothing as dense as bone", "90 HU")
    refused(tmp_path / "skew", "orientation is no rotation")
    refused(tmp_path / "bare", "20 damaged DICOM")
    refused(save(tmp_path / "one", 0, content()), "one slice of a series")
    (tmp_path / "scan.xyz").write_bytes(b"?")
    refused(tmp_path / "scan.xyz", "not a scan", ".nrrd")


def test_a_slice_cut_short(series: Path) -> None:
    cut = path_of(series, 6)
    cut.write_bytes(cut.read_bytes()[:-60])
    refused(series, "cannot be read", cut.name, "cut short", "--repair")
    scan = read_scan(series, repair=True)
    assert any(cut.name in text for text in scan.warnings)
    assert np.abs(scan.volume.volume_hu[:, :, 6] - content()[:, :, 6]).max() < 40
    cut.write_bytes(cut.read_bytes()[:200])
    refused(series, "1 of 20 slices missing")
    first = path_of(series, 0)
    first.write_bytes(first.read_bytes()[:-60])
    path_of(series, 6).unlink()
    save(series, 6, content())
    refused(series, first.name, repair=True)


def test_hostile_files_are_left_out_without_harm(
    series: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(series, 0, content(), "huge.dcm", Rows=65000, Columns=65000)
    head = path_of(series, 0).read_bytes()
    deep = b"".join(b"\x08\x00\x15\x11SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
                    for _ in range(3000))  # fmt: skip
    start = 144 + struct.unpack_from("<I", head, 140)[0]
    (series / "deep.dcm").write_bytes(head[:start] + deep)
    bomb = dataset(0, content())
    bomb.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    bomb.save_as(series / "bomb.dcm", enforce_file_format=True)
    monkeypatch.setattr(reading, "_MOST_INFLATED", 3_000_000)
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = squeeze.compress(bytes(4_000_000)) + squeeze.flush()
    raw = (series / "bomb.dcm").read_bytes()
    begin = 144 + struct.unpack_from("<I", raw, 140)[0]
    (series / "bomb.dcm").write_bytes(raw[:begin] + zeros)
    scan = read_scan(series)
    (said,) = scan.warnings
    for word in ("1 absurd image size", "1 damaged DICOM", "1 deflated beyond reason"):
        assert word in said
    assert np.array_equal(scan.volume.volume_hu, content())


def test_a_series_too_large_for_memory(series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_MOST_VOXELS", 1000)
    refused(series, "do not fit into memory")
    write_volume(Volume(content(), np.eye(4)), series / "grid.nrrd")
    refused(series / "grid.nrrd", "do not fit into memory")


# --- grids -------------------------------------------------------------------------------


def placed() -> np.ndarray:
    """A rotated, anisotropic voxel_to_world."""
    c, s = np.cos(0.3), np.sin(0.3)
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * [0.5, 0.8, 1.25]
    matrix[:3, 3] = ORIGIN
    return matrix


@pytest.mark.parametrize("left_handed", [False, True])
@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_writing_and_reading_back_is_exact(tmp_path: Path, kind: type, left_handed: bool) -> None:
    matrix = placed()
    if left_handed:
        matrix[:3, 0] *= -1
    hu = content().astype(kind)
    if kind is np.float32:
        hu += 0.25
    write_volume(Volume(hu, matrix), tmp_path / "v.nrrd")
    got = read_scan(tmp_path / "v.nrrd").volume
    assert got.volume_hu.dtype == kind
    assert np.array_equal(got.volume_hu, hu)
    assert np.allclose(got.voxel_to_world, matrix, rtol=0, atol=1e-12)


def test_whole_floats_are_kept_as_int16(tmp_path: Path) -> None:
    write_volume(Volume(content().astype(np.float32), placed()), tmp_path / "v.nrrd")
    assert read_scan(tmp_path / "v.nrrd").volume.volume_hu.dtype == np.int16
    with pytest.raises(ValueError, match="nrrd"):
        write_volume(Volume(content(), placed()), tmp_path / "v.mha")


def grid(path: Path, hu: np.ndarray | None = None) -> Path:
    array = content() if hu is None else hu
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing((0.5, 0.8, 1.25))
    image.SetOrigin(ORIGIN.tolist())
    image.SetDirection((placed()[:3, :3] / [0.5, 0.8, 1.25]).ravel().tolist())
    sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_every_format_lands_in_the_same_place(tmp_path: Path, suffix: str) -> None:
    scan = read_scan(grid(tmp_path / f"v{suffix}"))
    assert np.array_equal(scan.volume.volume_hu, content())
    assert np.allclose(scan.volume.voxel_to_world, placed(), atol=1e-5)
    assert scan.warnings == ()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("damage", ["empty", "half", "head", "text"])
def test_broken_grids(
    tmp_path: Path, suffix: str, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = grid(tmp_path / f"v{suffix}")
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "half": whole[: int(len(whole) * 0.7)],
                      "head": whole[:40], "text": b"hello world\n" * 60}[damage])  # fmt: skip
    refused(path)
    assert capfd.readouterr().err == ""


def test_nifti_headers_that_lie(tmp_path: Path) -> None:
    path = grid(tmp_path / "v.nii")
    whole = path.read_bytes()

    def with_field(at: int, form: str, *values: float) -> Path:
        changed = bytearray(whole)
        struct.pack_into(form, changed, at, *values)
        path.write_bytes(changed)
        return path

    refused(with_field(84, "<f", 0.0), "spacing is zero: 0.5 x 0 x 1.25")
    refused(with_field(84, "<f", -0.8), "spacing is negative")
    refused(with_field(84, "<f", np.nan), "spacing is not a number")
    refused(with_field(84, "<f", 2.0), "sform and its voxel spacing disagree")
    refused(with_field(112, "<f", np.nan), "not numbers")
    refused(with_field(42, "<h", 3000), "cut short")
    refused(with_field(42, "<h", -3), "gives no size")
    lost = read_scan(with_field(252, "<2h", 0, 0))
    assert any("no orientation" in text for text in lost.warnings)
    bomb = bytearray(whole)
    struct.pack_into("<3h", bomb, 42, 30000, 30000, 30000)
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(bytes(bomb)))
    refused(tmp_path / "bomb.nii.gz")


def test_nrrd_and_metaimage_headers_that_lie(tmp_path: Path) -> None:
    nrrd, mha = grid(tmp_path / "v.nrrd"), grid(tmp_path / "v.mha")
    for path, field, values in (
        (nrrd, rb"space directions: .*", {
            b"space directions: (0,0,0) (0,1,0) (0,0,1)": "zero",
            b"space directions: (nan,0,0) (0,1,0) (0,0,1)": "not a number",
            b"space directions: none none none": "fewer than three",
            b"comment: none": "no voxel spacing"}),
        (mha, rb"ElementSpacing = .*", {
            b"ElementSpacing = 0 1 1": "zero", b"ElementSpacing = 1 -1 1": "negative",
            b"ElementSpacing = a b c": "not a number", b"Comment = none": "no voxel spacing"}),
    ):  # fmt: skip
        whole = path.read_bytes()
        for value, word in values.items():
            path.write_bytes(re.sub(field, value, whole, count=1))
            refused(path, word)


def test_grids_that_are_no_scan(tmp_path: Path) -> None:
    floats = content().astype(np.float32)
    floats[3, 4, 5:8] = np.nan
    refused(grid(tmp_path / "nan.nii.gz", floats), "3 voxels are not numbers")
    floats[3, 4, 5:8] = np.inf
    refused(grid(tmp_path / "inf.mha", floats), "3 voxels are not numbers")
    flat = sitk.GetImageFromArray(np.ones((20, 30), np.int16))
    sitk.WriteImage(flat, str(tmp_path / "flat.nii"))
    refused(tmp_path / "flat.nii", "not a 3D scan")
    many = sitk.GetImageFromArray(np.ones((3, 4, 5, 6), np.int16), isVector=False)
    sitk.WriteImage(many, str(tmp_path / "many.nii"))
    refused(tmp_path / "many.nii", "6 x 5 x 4 x 3")
    colour = sitk.GetImageFromArray(np.ones((4, 5, 6, 3), np.uint8), isVector=True)
    sitk.WriteImage(colour, str(tmp_path / "colour.nrrd"))
    refused(tmp_path / "colour.nrrd")
    refused(grid(tmp_path / "dull.mha", np.minimum(content(), 100)), "nothing as dense as bone")
    positive = read_scan(grid(tmp_path / "positive.mha", content() + 1024))
    assert any("perhaps not in HU" in text for text in positive.warnings)


@pytest.mark.real
def test_the_damaged_slice_of_the_real_series(real_data: Path, tmp_path: Path) -> None:
    archive = (real_data / "vhf_lower_legs" / "slices.tar.xz").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(archive)) as slices:
        slices.extractall(tmp_path, filter="data")
    scan = read_scan(tmp_path)
    assert scan.volume.shape == (512, 512, 350)
    assert scan.volume.voxel_to_world[2, 3] == 150
    assert scan.damaged == (165,)
    (said,) = scan.warnings
    assert "315 mm" in said
    write_volume(scan.volume.crop((0, 0, 0), (512, 512, 20)), tmp_path / "part.nrrd")
    assert read_scan(tmp_path / "part.nrrd").volume.shape == (512, 512, 20)
