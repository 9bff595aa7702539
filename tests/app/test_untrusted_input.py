"""Bad input, by name: one line that names it and the fix, exit code 2, the bank untouched.

The cases are also run by ``benchmarks/hostile.py``, which records what each one said.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sqlite3
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
import trimesh
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from osteoprint.app.cli import run
from osteoprint.bank.store import Bank
from osteoprint.ct.reading import write_volume
from osteoprint.ct.volume import Volume
from osteoprint.fingerprint.model import save_model
from osteoprint.fingerprint.settings import DEFAULT_NETWORK, TrainingSettings
from osteoprint.study import calibration
from osteoprint.study.demo import make_phantoms, write_films
from osteoprint.study.enrolment import enrol_bank
from osteoprint.study.experiment import load_bones, train_on
from osteoprint.xray.standard import StandardFrame

STUDY, SERIES, OTHER_SERIES = (generate_uid() for _ in range(3))


def make_world(folder: Path) -> Path:
    """A bank of two enrolled cat femora, its model, and a good pair of films."""
    folder.mkdir(parents=True, exist_ok=True)
    with Bank.open(folder / "bank", write=True, create=True) as bank:
        make_phantoms(bank, ["one", "two"], 3, size="cat", voxels=150)
        bones = load_bones(bank)
        frame = StandardFrame.for_length(max(b.record.length_mm for b in bones), rows=96)
        network = dataclasses.replace(DEFAULT_NETWORK, looks=1)
        settings = TrainingSettings(network, steps=2, variants_per_bone=1, poses_per_variant=2)
        model = train_on(bones, frame, settings)
        save_model(model, folder / "model.safetensors")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(calibration, "_MOST", 6)  # fewer films teach the thresholds
            enrol_bank(bank, folder / "model.safetensors", model)
    write_films(folder / "films", bones[0].sample, bones[0].record.length_mm)
    return folder


def dicom(path: Path, z: float, pixels: np.ndarray | None = None, **tags: object) -> None:
    """One CT slice of 64 × 64 with a bright disc, at height ``z``."""
    if pixels is None:
        y, x = np.mgrid[:64, :64] - 31.5
        pixels = np.where(x * x + y * y < 15**2, 2200, 24).astype(np.uint16)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = tags.get("SOPClassUID", CTImageStorage)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    values: dict[str, object] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": SERIES,
        "SeriesDescription": "leg",
        "Modality": "CT",
        "ImagePositionPatient": [0.0, 0.0, float(z)],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [1.0, 1.0],
        "SliceThickness": 2.0,
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
    }
    for key, value in {**values, **tags}.items():
        setattr(data, key, value)
    data.PixelData = pixels.astype(np.uint16).tobytes()
    data.save_as(path, enforce_file_format=True)


def series(folder: Path, heights: list[float] | None = None, **tags: object) -> Path:
    folder.mkdir()
    for index, z in enumerate(heights if heights is not None else np.arange(40) * 2.0):
        dicom(folder / f"{index:03d}.dcm", float(z), **tags)
    return folder


def rod() -> trimesh.Trimesh:
    return trimesh.creation.capsule(height=120.0, radius=8.0, count=[16, 16])


# Each case gets an empty folder and the world, prepares its input and returns the command line.
Case = Callable[[Path, Path], list[str]]
CASES: dict[str, tuple[Case, str]] = {}


def case(name: str, says: str) -> Callable[[Case], Case]:
    """Register a case under its name, with a word its message must hold."""

    def add(function: Case) -> Case:
        CASES[name] = (function, says)
        return function

    return add


def ingest(source: Path, world: Path) -> list[str]:
    return ["ingest", str(source), "--bank", str(world / "bank")]


def identify(ap: Path, world: Path) -> list[str]:
    return ["identify", str(ap), str(world / "films/ml.png"), "--bank", str(world / "bank")]


@case("a path that is not there", "does not exist")
def _(here: Path, world: Path) -> list[str]:
    return ingest(here / "nowhere", world)


@case("an empty folder", "scan")
def _(here: Path, world: Path) -> list[str]:
    (here / "scan").mkdir()
    return ingest(here / "scan", world)


@case("a folder of photos", "photos")
def _(here: Path, world: Path) -> list[str]:
    (here / "photos").mkdir()
    for i in range(3):
        Image.fromarray(np.full((20, 20, 3), 40 * i, np.uint8)).save(here / f"photos/{i}.jpg")
    return ingest(here / "photos", world)


@case("a file of another kind", "letter.docx")
def _(here: Path, world: Path) -> list[str]:
    (here / "letter.docx").write_bytes(b"PK\x03\x04")
    return ingest(here / "letter.docx", world)


@case("one DICOM slice", "slice")
def _(here: Path, world: Path) -> list[str]:
    return ingest(series(here / "scan", [0.0]), world)


@case("two DICOM series in one folder", "--series")
def _(here: Path, world: Path) -> list[str]:
    series(here / "scan")
    for i in range(40):
        dicom(here / f"scan/b{i}.dcm", 2.0 * i, SeriesInstanceUID=OTHER_SERIES)
    return ingest(here / "scan", world)


@case("a missing slice", "--repair")
def _(here: Path, world: Path) -> list[str]:
    return ingest(series(here / "scan", [2.0 * i for i in range(40) if i != 17]), world)


@case("two different slices at one place", "scan")
def _(here: Path, world: Path) -> list[str]:
    series(here / "scan")
    dicom(here / "scan/again.dcm", 20.0, np.full((64, 64), 900, np.uint16))
    return ingest(here / "scan", world)


@case("a pixel spacing of zero", "spacing")
def _(here: Path, world: Path) -> list[str]:
    return ingest(series(here / "scan", PixelSpacing=[0.0, 0.0]), world)


@case("a negative pixel spacing", "spacing")
def _(here: Path, world: Path) -> list[str]:
    return ingest(series(here / "scan", PixelSpacing=[-1.0, 1.0]), world)


@case("an MR series", "MR")
def _(here: Path, world: Path) -> list[str]:
    return ingest(series(here / "scan", Modality="MR", SOPClassUID=MRImageStorage), world)


@case("DICOM files cut short", "scan")
def _(here: Path, world: Path) -> list[str]:
    series(here / "scan")
    for path in (here / "scan").iterdir():
        path.write_bytes(path.read_bytes()[:1500])
    return ingest(here / "scan", world)


@case("a deflated bomb", "scan")
def _(here: Path, world: Path) -> list[str]:
    (here / "scan").mkdir()
    dicom(here / "scan/a.dcm", 0.0)
    data = pydicom.dcmread(here / "scan/a.dcm")
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data.save_as(here / "scan/a.dcm")
    head = (here / "scan/a.dcm").read_bytes()
    length = struct.unpack("<I", head[140:144])[0]
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = b"".join(squeeze.compress(bytes(1 << 20)) for _ in range(1500)) + squeeze.flush()
    (here / "scan/a.dcm").write_bytes(head[: 144 + length] + body)
    return ingest(here / "scan", world)


@case("a scan with no bone in it", "bone")
def _(here: Path, world: Path) -> list[str]:
    write_volume(Volume(np.full((40, 40, 40), -100, np.int16), np.eye(4)), here / "fat.nrrd")
    return ingest(here / "fat.nrrd", world)


@case("a bone cut off by the scan's border", "end to end")
def _(here: Path, world: Path) -> list[str]:
    return ingest(series(here / "scan"), world)


@case("voxels that are not numbers", "not numbers")
def _(here: Path, world: Path) -> list[str]:
    grid = np.zeros((40, 40, 40), np.float32)
    grid[3, 3, 3] = np.nan
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(grid), here / "nan.nrrd")
    return ingest(here / "nan.nrrd", world)


@case("a volume of 0 bytes", "empty")
def _(here: Path, world: Path) -> list[str]:
    (here / "scan.nii").touch()
    return ingest(here / "scan.nii", world)


@case("text that is called a volume", "scan.nii.gz")
def _(here: Path, world: Path) -> list[str]:
    (here / "scan.nii.gz").write_text("not a volume\nat all\n")
    return ingest(here / "scan.nii.gz", world)


@case("a volume with a spacing of zero", "spacing")
def _(here: Path, world: Path) -> list[str]:
    write_volume(Volume(np.zeros((20, 20, 20), np.int16), np.eye(4)), here / "a.nrrd")
    raw = (here / "a.nrrd").read_bytes()
    start = raw.index(b"space directions:")
    end = raw.index(b"\n", start)
    line = b"space directions: (1,0,0) (0,0,0) (0,0,1)"
    (here / "a.nrrd").write_bytes(raw[:start] + line + raw[end:])
    return ingest(here / "a.nrrd", world)


@case("a surface with holes", "holes")
def _(here: Path, world: Path) -> list[str]:
    mesh = rod()
    trimesh.Trimesh(mesh.vertices, mesh.faces[:-9], process=False).export(here / "open.ply")
    return ingest(here / "open.ply", world)


@case("a surface in metres", "mm")
def _(here: Path, world: Path) -> list[str]:
    mesh = rod()
    mesh.apply_scale(1e-3)
    mesh.export(here / "metres.stl")
    return ingest(here / "metres.stl", world)


@case("two bones in one surface", "2")
def _(here: Path, world: Path) -> list[str]:
    other = rod()
    other.apply_translation([60.0, 0, 0])
    trimesh.util.concatenate([rod(), other]).export(here / "two.ply")
    return ingest(here / "two.ply", world)


@case("a surface of 0 bytes", "empty")
def _(here: Path, world: Path) -> list[str]:
    (here / "bone.stl").touch()
    return ingest(here / "bone.stl", world)


@case("a surface file cut short", "cut.ply")
def _(here: Path, world: Path) -> list[str]:
    rod().export(here / "cut.ply")
    raw = (here / "cut.ply").read_bytes()
    (here / "cut.ply").write_bytes(raw[: len(raw) // 2])
    return ingest(here / "cut.ply", world)


@case("vertices that are not numbers", "bone.obj")
def _(here: Path, world: Path) -> list[str]:
    (here / "bone.obj").write_text("v 0 0 0\nv nan 1 0\nv 0 1 1\nv 1 1 1\nf 1 2 3\nf 1 3 4\n")
    return ingest(here / "bone.obj", world)


@case("a ball, which has no long axis", "long")
def _(here: Path, world: Path) -> list[str]:
    trimesh.creation.icosphere(radius=30.0).export(here / "ball.ply")
    return ingest(here / "ball.ply", world)


@case("a name of no side", "--side")
def _(here: Path, world: Path) -> list[str]:
    return [*ingest(here, world), "--side", "upper"]


@case("a bank of another version", "version")
def _(here: Path, world: Path) -> list[str]:
    with Bank.create(here / "bank"):
        pass
    with sqlite3.connect(here / "bank/bank.sqlite") as database:
        database.execute("UPDATE meta SET value = '99' WHERE key LIKE '%version%'")
    database.close()
    return ["bank", "list", "--bank", str(here / "bank")]


@case("a bank that is a file", "bank")
def _(here: Path, world: Path) -> list[str]:
    (here / "bank").write_text("hello")
    return ["bank", "list", "--bank", str(here / "bank")]


@case("a bank whose database is something else", "database")
def _(here: Path, world: Path) -> list[str]:
    with Bank.create(here / "bank"):
        pass
    (here / "bank/bank.sqlite").write_bytes(b"x" * 5000)
    return ["bank", "list", "--bank", str(here / "bank")]


@case("no bank at all", "bank")
def _(here: Path, world: Path) -> list[str]:
    return ["train", "--bank", str(here / "none"), "--out", str(here / "m.safetensors")]


@case("an empty bank", "ingest")
def _(here: Path, world: Path) -> list[str]:
    with Bank.create(here / "bank"):
        pass
    return ["train", "--bank", str(here / "bank"), "--out", str(here / "m.safetensors")]


@case("a bank with no fingerprints", "enrol")
def _(here: Path, world: Path) -> list[str]:
    with Bank.create(here / "bank") as bank:
        make_phantoms(bank, ["only"], 9, size="cat", voxels=150)
    return ["identify", *(str(world / f"films/{v}.png") for v in ("ap", "ml")),
            "--bank", str(here / "bank")]  # fmt: skip


@case("a pickled model", "safetensors")
def _(here: Path, world: Path) -> list[str]:
    (here / "model.pt").write_bytes(b"\x80\x04")
    return ["enrol", "--bank", str(world / "bank"), "--model", str(here / "model.pt")]


@case("a model without its card", "card")
def _(here: Path, world: Path) -> list[str]:
    (here / "m.safetensors").write_bytes((world / "model.safetensors").read_bytes())
    return ["enrol", "--bank", str(world / "bank"), "--model", str(here / "m.safetensors")]


@case("a model that is not its card's", "match")
def _(here: Path, world: Path) -> list[str]:
    raw = (world / "model.safetensors").read_bytes()
    (here / "m.safetensors").write_bytes(raw[:-4] + b"\0\0\0\x01")
    (here / "m.json").write_bytes((world / "model.json").read_bytes())
    return ["enrol", "--bank", str(world / "bank"), "--model", str(here / "m.safetensors")]


@case("a model that does not fit the bank", "trained for bones")
def _(here: Path, world: Path) -> list[str]:
    with Bank.create(here / "bank") as bank:
        make_phantoms(bank, ["man"], 9, size="human", voxels=150)
    return ["enrol", "--bank", str(here / "bank"), "--model", str(world / "model.safetensors")]


@case("a network that nobody knows", "timm")
def _(here: Path, world: Path) -> list[str]:
    return ["train", "--bank", str(world / "bank"), "--out", str(here / "m.safetensors"),
            "--backbone", "resnet-of-my-own"]  # fmt: skip


def film(here: Path, world: Path, change: Callable[[dict], None] | None = None) -> Path:
    """A copy of the good AP film whose sidecar was changed."""
    path = here / "ap.png"
    path.write_bytes((world / "films/ap.png").read_bytes())
    facts = json.loads((world / "films/ap.png.json").read_text())
    if change:
        change(facts)
    (here / "ap.png.json").write_text(json.dumps(facts))
    return path


@case("a film that is not there", "not a file")
def _(here: Path, world: Path) -> list[str]:
    return identify(here / "ap.png", world)


@case("a film of 0 bytes", "empty")
def _(here: Path, world: Path) -> list[str]:
    film(here, world).write_bytes(b"")
    return identify(here / "ap.png", world)


@case("a film cut short", "cannot be read")
def _(here: Path, world: Path) -> list[str]:
    path = film(here, world)
    path.write_bytes(path.read_bytes()[:2000])
    return identify(path, world)


@case("a film without a scale", "pixel_spacing_mm")
def _(here: Path, world: Path) -> list[str]:
    return identify(film(here, world, lambda f: f.pop("pixel_spacing_mm")), world)


@case("a film without distances", "sdd_mm")
def _(here: Path, world: Path) -> list[str]:
    return identify(film(here, world, lambda f: f.pop("sod_mm")), world)


@case("a film whose bone lies behind the detector", "exchange")
def _(here: Path, world: Path) -> list[str]:
    return identify(film(here, world, lambda f: f.update(sod_mm=9e5)), world)


@case("a film without polarity", "polarity")
def _(here: Path, world: Path) -> list[str]:
    # A bone on air would tell; a film full of noise does not.
    path = film(here, world, lambda f: f.pop("polarity"))
    noise = np.random.default_rng(0).normal(128, 6, (400, 300)).clip(0, 255)
    Image.fromarray(noise.astype(np.uint8)).save(path)
    return identify(path, world)


@case("an ML film in the place of the AP film", "ML")
def _(here: Path, world: Path) -> list[str]:
    return identify(world / "films/ml.png", world)


@case("a sidecar that is not JSON", "JSON")
def _(here: Path, world: Path) -> list[str]:
    path = film(here, world)
    (here / "ap.png.json").write_text("{view: AP")
    return identify(path, world)


@case("a sidecar with a word for a number", "pixel_spacing_mm")
def _(here: Path, world: Path) -> list[str]:
    return identify(film(here, world, lambda f: f.update(pixel_spacing_mm="wide")), world)


@case("a spacing ten times too large", "mm")
def _(here: Path, world: Path) -> list[str]:
    def change(facts: dict) -> None:
        facts["pixel_spacing_mm"] = [10 * v for v in facts["pixel_spacing_mm"]]

    return identify(film(here, world, change), world)


@case("a colour photo as a film", "colour")
def _(here: Path, world: Path) -> list[str]:
    path = film(here, world)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (200, 100, 3), dtype=np.uint8)).save(path)
    return identify(path, world)


@case("a film of one even grey", "grey")
def _(here: Path, world: Path) -> list[str]:
    path = film(here, world)
    Image.fromarray(np.full((200, 100), 90, np.uint8)).save(path)
    return identify(path, world)


@case("a film without a long bone", "elongated")
def _(here: Path, world: Path) -> list[str]:
    path = film(here, world)
    y, x = np.mgrid[:200, :200] - 100
    Image.fromarray(((x * x + y * y < 900) * 200).astype(np.uint8)).save(path)
    return identify(path, world)


@case("two films of different sides of the body", "side")
def _(here: Path, world: Path) -> list[str]:
    return identify(film(here, world, lambda f: f.update(body_side="left")), world)


@case("two films of bones of different length", "AP film")
def _(here: Path, world: Path) -> list[str]:
    def change(facts: dict) -> None:
        facts["pixel_spacing_mm"] = [0.7 * v for v in facts["pixel_spacing_mm"]]

    return identify(film(here, world, change), world)


@case("a sidecar that never ends", "JSON")
def _(here: Path, world: Path) -> list[str]:
    path = film(here, world)
    (here / "ap.png.json").write_text("[" * 100_000)
    return identify(path, world)


@case("a DICOM film with a distance below zero", "impossible")
def _(here: Path, world: Path) -> list[str]:
    dicom(here / "ap.dcm", 0.0, DistanceSourceToDetector=-1150, ImagerPixelSpacing=[1, 1])
    return identify(here / "ap.dcm", world)


@case("a DICOM film with half a pixel spacing", "impossible")
def _(here: Path, world: Path) -> list[str]:
    dicom(here / "ap.dcm", 0.0, ImagerPixelSpacing=[1])
    return identify(here / "ap.dcm", world)


@case("a network for pictures of another size", "192")
def _(here: Path, world: Path) -> list[str]:
    return ["train", "--bank", str(world / "bank"), "--out", str(here / "m.safetensors"),
            "--backbone", "vit_tiny_patch16_224"]  # fmt: skip


@case("an output below a file", "file")
def _(here: Path, world: Path) -> list[str]:
    (here / "file").write_text("mine")
    return ["render", "--bank", str(world / "bank"), "--out", str(here / "file/x")]


@case("a training for no bank, beside a checkpoint", "no such bank")
def _(here: Path, world: Path) -> list[str]:
    (here / "m.checkpoint").write_text("hours of work")
    return ["train", "--bank", str(here / "none"), "--out", str(here / "m.safetensors")]


@case("an ablation of something else", "--minutes")
def _(here: Path, world: Path) -> list[str]:
    return ["study", "ablation", "--bank", str(world / "bank"), "--out", str(here / "a"),
            "--minutes", "3"]  # fmt: skip


@case("refining another network", "--refine")
def _(here: Path, world: Path) -> list[str]:
    return ["train", "--bank", str(world / "bank"), "--out", str(here / "m.safetensors"),
            "--refine", "--backbone", "resnet18"]  # fmt: skip


@case("a new bank for nothing", "does not exist")
def _(here: Path, world: Path) -> list[str]:
    return ["ingest", str(here / "nothing.ply"), "--bank", str(here / "new")]


@case("a surface format that nobody writes", ".ply")
def _(here: Path, world: Path) -> list[str]:
    films = [str(world / f"films/{v}.png") for v in ("ap", "ml")]
    return ["reconstruct", *films, "--bank", str(world / "bank"), "--out", str(here / "a.docx")]


@case("a folder that is not there to write to", "written")
def _(here: Path, world: Path) -> list[str]:
    films = [str(world / f"films/{v}.png") for v in ("ap", "ml")]
    return ["reconstruct", *films, "--bank", str(world / "bank"),
            "--out", str(here / "no/such/a.ply")]  # fmt: skip


@case("comparing with what is no surface", "truth.stl")
def _(here: Path, world: Path) -> list[str]:
    rod().export(here / "estimate.stl")
    (here / "truth.stl").write_text("hello")
    return ["compare", str(here / "estimate.stl"), str(here / "truth.stl")]


@case("a backup over something else", "new")
def _(here: Path, world: Path) -> list[str]:
    (here / "precious.txt").write_text("mine")
    return ["bank", "backup", str(here), "--bank", str(world / "bank")]


@case("a demo over something else", "precious.txt")
def _(here: Path, world: Path) -> list[str]:
    (here / "precious.txt").write_text("mine")
    return ["demo", "--out", str(here)]


def fingerprint_of(folder: Path) -> dict[str, str]:
    """Every file of a folder with the hash of its content; SQLite's side files left out."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.endswith(("-wal", "-shm", ".lock"))
    }


def test_the_good_films_are_answered(world, capsys):
    films = [str(world / f"films/{v}.png") for v in ("ap", "ml")]
    assert run(["identify", *films, "--bank", str(world / "bank"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["matches"]) == 2


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_and_changes_nothing(name, world, tmp_path, capsys):
    prepare, says = CASES[name]
    arguments = prepare(tmp_path, world)
    before = fingerprint_of(world), fingerprint_of(tmp_path)
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("osteoprint: ")
    assert says in captured.err
    assert "Traceback" not in captured.err
    assert (fingerprint_of(world), fingerprint_of(tmp_path)) == before
