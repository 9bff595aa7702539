"""Films as clinics store them, each with one or more defects and with the truth about it.

A case makes one film file (and its sidecar) in a folder. Expected is either the right reading
or, where the film cannot be used, an error that says so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from osteoprint.frames import Side, View
from osteoprint.xray.materials import BODY
from osteoprint.xray.presets import take
from osteoprint.xray.projector import path_lengths

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "xray"))
import film_samples as fs

Maker = Callable[[Path], tuple[fs.Sample, Path]]


@dataclass(frozen=True)
class Case:
    """One film.

    ``make`` writes it and gives the truth; ``error`` is part of the message of a film that has
    to be refused; ``marker_mm`` is passed on; ``quarters`` and ``mirrored`` say how the stored
    picture was turned from the upright one (counterclockwise, after mirroring); ``warns`` is
    part of a warning that has to be given; ``cut`` says that the bone's end was not exposed, so
    that the bone's box cannot be right and the warning has to say so.
    """

    name: str
    make: Maker
    error: str | None = None
    marker_mm: float | None = None
    quarters: int = 0
    mirrored: bool = False
    warns: str | None = None
    cut: bool = False


def _picture(
    film: fs.Sample, shown: np.ndarray, ending: str = "png", bits: int = 8, **said: object
) -> Maker:
    options = {"quality": 92} if ending == "jpg" else {}

    def make(folder: Path) -> tuple[fs.Sample, Path]:
        path = folder / f"film.{ending}"
        return film, fs.save_picture(path, shown, fs.facts(film, **said), bits, **options)

    return make


def _dicom(
    film: fs.Sample, shown: np.ndarray, kind: str = "DX", bits: int = 12, **tags: object
) -> Maker:
    def make(folder: Path) -> tuple[fs.Sample, Path]:
        stored = np.round(np.clip(shown, 0, 1) * (2**bits - 1))
        return film, fs.save_dicom(folder / "film.dcm", stored, film, kind, bits, **tags)

    return make


def _preset(name: str, chance: int, **how: object) -> tuple[fs.Sample, np.ndarray]:
    """A film of a preset of ours, with its soft tissue, noise, scatter, edges and curve."""
    film = fs.sample(**how)
    _, _, traced = fs.phantom(film.kind, how.get("size", "human"), how.get("seed", 0), film.side,
                              how.get("soft_mm"))  # fmt: skip
    rng = np.random.default_rng(chance)
    shown = take(path_lengths(traced, film.camera), BODY, film.camera.geometry, name, rng)
    return film, np.asarray(shown)


def cases() -> list[Case]:
    """All of them, in a fixed order."""
    return [*_files(), *_dicoms(), *_edges(), *_tissues(), *_turned(), *_markers(), *_refused()]


def _files() -> list[Case]:
    plain, left = (
        fs.sample(),
        fs.sample(side=Side.LEFT, view=View.ML, turn_deg=9, shift=(0.05, 0.03)),
    )
    cat = fs.sample(size="cat", seed=5, turn_deg=-12)
    tibia = fs.sample(kind="tibia", seed=2, long_deg=12, tilt_deg=3)
    noisy = fs.with_noise(fs.sample(seed=7, turn_deg=5), 3000, 1)
    return [
        Case("PNG, 16 bit, all said",
             _picture(plain, fs.grey(plain), bits=16, polarity="bone_bright")),
        Case("PNG, 8 bit, polarity not said", _picture(plain, fs.grey(plain))),
        Case("PNG, bone dark, not said", _picture(left, fs.grey(left, "bone_dark"))),
        Case("TIFF, 16 bit, bone dark, not said",
             _picture(left, fs.grey(left, "bone_dark"), "tif", 16)),
        Case("JPEG, a cat's femur, tipped", _picture(cat, fs.grey(cat), "jpg")),
        Case("PNG, tibia, turned and tilted", _picture(tibia, fs.grey(tibia, gamma=0.8))),
        Case("PNG, transmitted fraction",
             _picture(plain, np.exp(-plain.image), bits=16, intensity="linear")),
        Case("PNG, quantum noise and blur", _picture(noisy, fs.grey(noisy))),
        Case("PNG, noise, bone dark, gamma 1.4", _picture(noisy, fs.grey(noisy, "bone_dark", 1.4))),
    ]  # fmt: skip


def _dicoms() -> list[Case]:
    plain = fs.sample(seed=1, turn_deg=-7)
    ml = fs.sample(seed=1, view=View.ML, side=Side.LEFT)
    bright, dark = fs.grey(plain), fs.grey(plain, "bone_dark")
    counts = np.exp(-plain.image)
    logs = np.clip(plain.image / 4.0, 0, 1)
    curve = np.round(4095 * (np.arange(4096) / 4095) ** 1.6).astype(int)
    mm = plain.mm
    return [
        Case("DX, MONOCHROME2", _dicom(plain, bright)),
        Case("DX, MONOCHROME1", _dicom(plain, dark, PhotometricInterpretation="MONOCHROME1")),
        Case("CR, MONOCHROME1 said, but stored the other way",
             _dicom(plain, bright, "CR", PhotometricInterpretation="MONOCHROME1"),
             warns="other way round"),
        Case("CR, 10 bit, window",
             _dicom(plain, bright, "CR", 10, WindowCenter=500, WindowWidth=900)),
        Case("DX, modality look-up table", _dicom(plain, bright, ModalityLUTSequence=fs.lut(
            curve, bits=16, ModalityLUTType="US"))),
        Case("DX, VOI look-up table",
             _dicom(plain, bright, VOILUTSequence=fs.lut(curve * 16, bits=16))),
        Case("RF, 8 bit, linear in the signal",
             _dicom(plain, counts, "RF", 8, PixelIntensityRelationship="LIN",
                    PixelIntensityRelationshipSign=1)),
        Case("DX, logarithmic, sign given",
             _dicom(plain, 1 - logs, PixelIntensityRelationship="LOG",
                    PixelIntensityRelationshipSign=1, PhotometricInterpretation="MONOCHROME1")),
        Case("SC, pixel spacing at the bone only",
             _dicom(plain, bright, "SC", 8, ImagerPixelSpacing=None, DistanceSourceToDetector=None,
                    DistanceSourceToPatient=None, PixelSpacing=[mm, mm]), warns="PixelSpacing"),
        Case("CR, PixelSpacing calibrated against ImagerPixelSpacing",
             _dicom(plain, bright, "CR", DistanceSourceToDetector=None,
                    DistanceSourceToPatient=None, PixelSpacing=[mm, mm],
                    PixelSpacingCalibrationType="GEOMETRY")),
        Case("DX, magnification factor instead of the patient's distance",
             _dicom(plain, bright, DistanceSourceToPatient=None,
                    EstimatedRadiographicMagnificationFactor=1.15)),
        Case("DX, stored upside down, orientation said",
             _dicom(plain, bright[::-1], PatientOrientation=["L", "H"]), warns="upside down"),
        Case("DX, ML of a left bone, seen from the detector",
             _dicom(ml, fs.grey(ml)[:, ::-1], PatientOrientation=["P", "F"]), warns="mirrored"),
    ]  # fmt: skip


def _edges() -> list[Case]:
    plain = fs.sample(seed=4, turn_deg=6)
    tibia = fs.sample(kind="tibia", seed=6, view=View.ML)
    bright, dark = fs.grey(plain), fs.grey(plain, "bone_dark")
    specks = fs.with_specks(plain, 3)
    return [
        Case("collimated, straight, black", _picture(plain, fs.collimate(bright, "rect", 0.0))),
        Case("collimated, turned, white", _picture(plain, fs.collimate(bright, "rect", 1.0, 3.0))),
        Case("collimated, bone dark, black outside",
             _picture(plain, fs.collimate(dark, "rect", 0.0, -4.0))),
        Case("round mask, bone dark",
             _picture(tibia, fs.collimate(fs.grey(tibia, "bone_dark"), "round", 0.0))),
        Case("white border", _picture(plain, fs.frame(bright, 1.0, 14))),
        Case("black border around a film of dark bone", _picture(plain, fs.frame(dark, 0.0, 14))),
        Case("collimated, in a white border",
             _picture(plain, fs.frame(fs.collimate(bright, "rect", 0.0), 1.0, 10))),
        Case("letters, white on black",
             _picture(plain, fs.write_text(bright, "R  24.11.", (60, 60), 1.0))),
        Case("letters, white, on a film of dark bone",
             _picture(plain, fs.write_text(dark, "L AP 70 kV", (820, 400), 0.0))),
        Case("letters in the collimated border",
             _picture(plain, fs.write_text(fs.collimate(bright, "rect", 0.0, margin=0.08), "R",
                                           (20, 20), 1.0))),
        Case("dead and hot pixels, dust", _picture(specks, fs.grey(specks))),
    ]  # fmt: skip


def _tissues() -> list[Case]:
    thigh = fs.with_noise(fs.sample(soft_mm=60.0, turn_deg=-6, seed=8), 4000, 2)
    shin = fs.with_noise(fs.sample(kind="tibia", soft_mm=40.0, seed=9, view=View.ML), 4000, 3)
    paw = fs.with_noise(fs.sample(size="cat", soft_mm=12.0, seed=10, turn_deg=10), 4000, 4)
    clinic, one = _preset("clinic", 1, seed=11, soft_mm=50.0, turn_deg=4)
    clinic_ml, two = _preset("clinic", 2, seed=11, soft_mm=50.0, view=View.ML, turn_deg=-5)
    clinic_t, three = _preset("clinic", 3, seed=12, kind="tibia", soft_mm=30.0)
    bad, four = _preset("bad day", 4, seed=13, soft_mm=50.0)
    worse, five = _preset("bad day", 5, seed=18, soft_mm=45.0, fill=0.55, turn_deg=8)
    return [
        Case("thigh", _picture(thigh, fs.grey(thigh))),
        Case("thigh, bone dark, collimated, letters",
             _picture(thigh, fs.write_text(
                 fs.collimate(fs.grey(thigh, "bone_dark"), "rect", 0.0, 3),
                 "R  AP", (90, 80), 1.0))),
        Case("lower leg, round mask",
             _picture(shin, fs.collimate(fs.grey(shin, "bone_dark"), "round", 0.0))),
        Case("cat's thigh", _picture(paw, fs.grey(paw))),
        Case("preset clinic, femur AP", _picture(clinic, one, bits=16)),
        Case("preset clinic, femur ML", _picture(clinic_ml, two, bits=16)),
        Case("preset clinic, tibia, bone dark", _picture(clinic_t, 1 - three, bits=16)),
        Case("preset bad day, femur", _picture(worse, five)),
        Case("preset bad day, its collimator over the condyles",
             _picture(bad, four), cut=True, warns="runs over the edge"),
    ]  # fmt: skip


def _turned() -> list[Case]:
    plain = fs.sample(seed=14, turn_deg=3)
    shown = fs.grey(plain)
    right, left = fs.sample(seed=14, turn_deg=20), fs.sample(seed=14, turn_deg=-35, fill=0.6)
    return [
        Case("leans by 20 degrees", _picture(right, fs.grey(right))),
        Case("leans by -35 degrees", _picture(left, fs.grey(left))),
        Case("upside down, said", _picture(plain, shown[::-1, ::-1], proximal="down"), quarters=2),
        Case("on its side, head to the left, said",
             _picture(plain, np.rot90(shown), proximal="left"), quarters=1),
        Case("on its side, head to the right, said",
             _picture(plain, np.rot90(shown, 3), proximal="right"), quarters=3),
        Case("mirrored, said", _picture(plain, shown[:, ::-1], mirrored=True), mirrored=True),
    ]  # fmt: skip


def _markers() -> list[Case]:
    """Scale objects of the size they have on films: 40 pixels and more."""
    how = {"shape": (1500, 1200), "seed": 15}
    bare, soft = fs.sample(**how), fs.sample(soft_mm=50.0, **how)
    none = {"pixel_spacing_mm": None}
    made = [
        ("ball of 25.4 mm", fs.with_noise(fs.with_marker(bare, 25.4, (700, 1050)), 20000, 5), 25.4),
        ("square of 20 mm", fs.with_noise(
            fs.with_marker(bare, 20.0, (500, 250), "square", 14.0), 20000, 6), 20.0),
        ("disc of 20 mm", fs.with_noise(
            fs.with_marker(bare, 20.0, (900, 1000), "disc"), 20000, 7), 20.0),
        ("rod of 50 mm", fs.with_noise(
            fs.with_marker(bare, 50.0, (900, 1000), "rod", 8.0), 20000, 8), 50.0),
        ("ball of 25.4 mm beside a thigh",
         fs.with_noise(fs.with_marker(soft, 25.4, (750, 1120)), 20000, 9), 25.4),
    ]  # fmt: skip
    told = fs.with_noise(fs.with_marker(bare, 25.4, (700, 1050)), 20000, 10)
    cube = fs.with_noise(fs.with_marker(soft, 20.0, (700, 1090), "square"), 20000, 11)
    return [
        *(
            Case(f"scale object: {name}", _picture(film, fs.grey(_clipped(film)), **none),
                 marker_mm=size)
            for name, film, size in made
        ),
        Case("scale object, its place said in the sidecar",
             _picture(told, fs.grey(_clipped(told)), marker_mm=25.4, marker_at_px=[700, 1050],
                      **none)),
        Case("scale object, bone dark, no distances",
             _picture(cube, fs.grey(_clipped(cube), "bone_dark"), sdd_mm=None, sod_mm=None, **none),
             marker_mm=20.0, warns="distance of the source"),
    ]  # fmt: skip


def _clipped(film: fs.Sample) -> fs.Sample:
    """Behind metal only scatter arrives: no film goes on beyond some four line integrals."""
    from dataclasses import replace

    return replace(film, image=np.clip(film.image, 0, 4.0))


def _refused() -> list[Case]:
    plain = fs.sample(seed=16)
    shown = fs.grey(plain)
    side = np.rot90(shown)
    small = fs.with_marker(fs.sample(shape=(400, 320), seed=16), 10.0, (200, 280))
    crowd = np.full((900, 720), 0.5) + 0.02 * np.random.default_rng(0).normal(size=(900, 720))
    return [
        Case("no scale", _picture(plain, shown, pixel_spacing_mm=None), error="no scale"),
        Case("no distances", _picture(plain, shown, sod_mm=None), error="no distances"),
        Case("a scale object is named and none is there",
             _picture(plain, shown, pixel_spacing_mm=None), error="no scale object",
             marker_mm=25.0),
        Case("a scale object of seven pixels",
             _picture(small, fs.grey(_clipped(small)), pixel_spacing_mm=None),
             error="scale object", marker_mm=10.0),
        Case("on its side, nobody says which end is up", _picture(plain, side), error="leans"),
        Case("nothing but noise, polarity not said",
             _picture(plain, crowd), error="bone is bright"),
        Case("an ML film in the place of the AP film",
             _picture(plain, shown, view="ML"), error="in the place of"),
    ]  # fmt: skip
