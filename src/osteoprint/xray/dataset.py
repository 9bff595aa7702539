"""Artificial X-rays as files: one picture per pair, AP and ML side by side, and manifests.

The work on a bone is cut into turns: all pictures at one turn about the long axis. Any
process may make any turn, in any order: the bits are the same. A picture appears whole or
not at all, a turn's record after its pictures, the bone's manifest after its turns; what was
interrupted goes on where it stopped. What stood in a record is never made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osteoprint.ct.reading import read_scan
from osteoprint.ct.volume import Volume
from osteoprint.frames import Side, View
from osteoprint.xray.camera import Geometry, Pose, view_camera
from osteoprint.xray.materials import BODY
from osteoprint.xray.picture import blur_kernel, draw_blurred
from osteoprint.xray.projector import TracedVolume, path_lengths, prepare
from osteoprint.xray.protocol import PairView, Protocol, film_geometry
from osteoprint.xray.radiograph import line_integrals
from osteoprint.xray.scale_object import (
    cube_to_world,
    free_place,
    measure_cube,
    object_size_mm,
    with_cube,
)

# Counts up whenever the same settings would give other pictures.
RENDERER = 2
BLUR_PX = 1.0
MANIFEST = "manifest.json"
_WORK = "unfinished"
# A picture of this module, or one not finished.
_OURS = re.compile(r"z[+-]\d\d_y[+-]\d\d_e\d{3}\.png(\.\d+\.partial)?$")
# White is brighter than the brightest bone of the set by so much; in steps, lest a new bone
# change the others' pictures.
_HEADROOM, _STEPS_PER_OCTAVE = 1.05, 4


@dataclass(frozen=True)
class Subject:
    """A bone to be rendered, as a process far away needs it.

    Attributes
    ----------
    id, name : as in the bank.
    scan : path of its CT, readable by every process.
    scan_sha256 : of that file.
    bone_to_world : (4, 4) as rows, anatomical frame -> LPS mm of the scan.
    side : of the body.
    length_mm : along the long axis.
    """

    id: str
    name: str
    scan: str
    scan_sha256: str
    bone_to_world: tuple[tuple[float, ...], ...]
    side: Side
    length_mm: float


@dataclass(frozen=True)
class ViewScale:
    """What the scale object says of one view of one bone.

    Attributes
    ----------
    object_mm : the object's edge.
    measured_px : its edge in the image of this view.
    true_px : what the camera makes of it: the measurement's error can be told.
    place : (row, column) of its middle in the image.
    brightest : the highest line integral of the bone at the protocol's lowest energy.
    """

    object_mm: float
    measured_px: float
    true_px: float
    place: tuple[float, float]
    brightest: float

    def factor(self, mm_per_pixel: float) -> float:
        """By how much the image is to be shrunk for its pixels to measure so many mm."""
        return self.object_mm / mm_per_pixel / self.measured_px


# By view; on the way through a scheduler a View becomes the string that it equals.
Scales = Mapping[View, ViewScale]


@dataclass(frozen=True)
class Setup:
    """What all pictures of a set have in common.

    Attributes
    ----------
    protocol : the views.
    mm_per_pixel : what a pixel measures at the bone, in every picture of the set; None
        where every bone fills its own picture.
    full_scale : the line integral that becomes white.
    rows, columns : size of one view; a picture is twice as wide.
    """

    protocol: Protocol
    mm_per_pixel: float | None
    full_scale: float
    rows: int = 800
    columns: int = 400


def measure_scale(subject: Subject, setup: Setup) -> dict[View, ViewScale]:
    """Draw the scale object into the bone's scan, X-ray it in both views, measure it.

    Raises ValueError where the object has no room beside the bone.
    """
    scan = _scan(subject.scan, subject.scan_sha256)
    geometry = film_geometry(subject.length_mm, setup.rows, setup.columns)
    energy = min(setup.protocol.energy_kev)
    size = object_size_mm(subject.length_mm)
    true_px = size / geometry.spacing_at_bone_mm[0]
    found = {}
    for view in View:
        camera = view_camera(np.array(subject.bone_to_world), view, subject.side, geometry)
        bare = line_integrals(path_lengths(prepare(scan), camera), BODY, energy)
        place = free_place(bare, true_px)
        both = prepare(with_cube(scan, cube_to_world(camera, place), size))
        image = line_integrals(path_lengths(both, camera), BODY, energy)
        cube = measure_cube(image, place, true_px)
        found[view] = ViewScale(size, cube.edge_px, true_px, place, float(bare.max()))
    return found


def full_scale(brightest: float) -> float:
    """The line integral that becomes white in a set with bones up to so bright."""
    octaves = np.ceil(_STEPS_PER_OCTAVE * np.log2(max(brightest * _HEADROOM, 1e-6)))
    return float(round(2.0 ** (octaves / _STEPS_PER_OCTAVE), 6))


def bone_key(subject: Subject, setup: Setup, scales: Scales) -> str:
    """SHA-256 of all that decides about a bone's pictures."""
    said = asdict(subject) | {"setup": asdict(setup), "renderer": RENDERER, "blur_px": BLUR_PX}
    # Where a scan lies and what it is called do not change what is seen on it.
    del said["scan"], said["name"]
    said["scales"] = {str(view): asdict(scale) for view, scale in scales.items()}
    said["mu_per_mm"] = [BODY.mu_per_mm(e).tolist() for e in setup.protocol.energy_kev]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def render_turn(
    subject: Subject, setup: Setup, scales: Scales, long_deg: float, folder: str
) -> dict[str, Any]:
    """Write all pictures of a bone at one turn about its long axis, then the turn's record.

    Where the record is there already and its files are, nothing is made.

    Parameters
    ----------
    subject, setup, scales : the bone, the set, and :func:`measure_scale`'s result.
    long_deg : the turn.
    folder : of this bone's pictures.

    Returns
    -------
    {"key", "made" (how many pictures were made now), "pairs": a row for each picture}.
    """
    key = f"{bone_key(subject, setup, scales)} z{long_deg:+03.0f}"
    record = _record_path(Path(folder), f"z{long_deg:+03.0f}")
    known = read_record(record, key, Path(folder))
    if known is not None:
        return known | {"made": 0}
    record.parent.mkdir(parents=True, exist_ok=True)
    scan = _scan(subject.scan, subject.scan_sha256)
    traced = _traced(scan)
    energies = setup.protocol.energy_kev
    rows = []
    for tip in setup.protocol.in_plane_deg:
        pictures = np.zeros((len(energies), setup.rows, 2 * setup.columns), np.uint8)
        for index, view in enumerate(View):
            half = pictures[:, :, index * setup.columns : (index + 1) * setup.columns]
            pose = Pose(long_deg=long_deg, in_plane_deg=tip)
            _draw_view(traced, subject, setup, scales[view], view, pose, half)
        for energy, picture in zip(energies, pictures, strict=True):
            rows.append(_write_pair(Path(folder), PairView(long_deg, tip, energy), picture))
    write_json(record, {"key": key, "pairs": rows})
    return {"key": key, "pairs": rows, "made": len(rows)}


def view_geometry(subject: Subject, setup: Setup, scale: ViewScale) -> Geometry:
    """The camera's set-up of a view, shrunk by what the scale object measured.

    Instead of taking 400 x 800 pixels and resampling them to fewer, as many rays are sent
    as pixels will be left: the same film area, nothing interpolated.
    """
    own = film_geometry(subject.length_mm, setup.rows, setup.columns)
    if setup.mm_per_pixel is None:
        return own
    factor = min(scale.factor(setup.mm_per_pixel), 1.0)
    spacing = own.pixel_spacing_mm[0] / factor
    # An even number less, so that the middle of the film stays the middle of the picture.
    rows, columns = (n - 2 * int(n * (1 - factor) / 2) for n in (own.rows, own.columns))
    return Geometry(rows, columns, (spacing, spacing), own.sdd_mm, own.sod_mm)


def _draw_view(
    traced: TracedVolume,
    subject: Subject,
    setup: Setup,
    scale: ViewScale,
    view: View,
    pose: Pose,
    out: NDArray[np.uint8],
) -> None:
    """One view at all energies of a protocol into ``out`` (energies, rows, columns)."""
    geometry = view_geometry(subject, setup, scale)
    bone_to_world = np.array(subject.bone_to_world)
    camera = view_camera(bone_to_world, view, subject.side, geometry, pose)
    lengths = path_lengths(traced, camera)
    top, left = (out.shape[1] - geometry.rows) // 2, (out.shape[2] - geometry.columns) // 2
    kernel = blur_kernel(BLUR_PX)
    for energy, picture in zip(setup.protocol.energy_kev, out, strict=True):
        grey = BODY.mu_per_mm(energy).astype(np.float32) * np.float32(255.0 / setup.full_scale)
        draw_blurred(lengths, grey, kernel, picture, top, left)


def finish_bone(
    subject: Subject,
    setup: Setup,
    scales: Scales,
    turns: Sequence[dict[str, Any]],
    folder: Path,
    scale_key: str,
) -> dict[str, Any]:
    """Write a bone's manifest and clear away what is not in it; returns the manifest.

    Parameters
    ----------
    subject, setup, scales, folder : as :func:`render_turn`.
    turns : what it returned for each turn, in the protocol's order.
    scale_key : what the scales were measured for, to know them again.
    """
    pairs = [row for turn in turns for row in turn["pairs"]]
    manifest = {
        "key": bone_key(subject, setup, scales),
        "scale_key": scale_key,
        "scales": scales_as_json(scales),
        "id": subject.id,
        "name": subject.name,
        "scan_sha256": subject.scan_sha256,
        "side": subject.side.value,
        "length_mm": subject.length_mm,
        "bone_to_world": subject.bone_to_world,
        "views": {
            str(view): {
                "factor": None
                if setup.mm_per_pixel is None
                else min(scale.factor(setup.mm_per_pixel), 1.0),
                "geometry": asdict(view_geometry(subject, setup, scale)),
            }
            for view, scale in scales.items()
        },
        "pairs": pairs,
    }
    write_json(folder / MANIFEST, manifest)
    clear_leftovers(folder, {row["file"] for row in pairs})
    return manifest


def clear_leftovers(folder: Path, wanted: set[str]) -> None:
    """Remove records, drafts and pictures of this module that a finished bone does not name."""
    shutil.rmtree(folder / _WORK, ignore_errors=True)
    for path in folder.iterdir():
        if _OURS.match(path.name) and path.name not in wanted:
            path.unlink(missing_ok=True)
    for draft in folder.glob("*.partial"):
        draft.unlink(missing_ok=True)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """A bone's manifest, None where there is none that can be read."""
    return _read_json(folder / MANIFEST)


def read_record(path: Path, key: str, folder: Path) -> dict[str, Any] | None:
    """A record (or manifest) with this key whose pictures all lie there in full size."""
    known = _read_json(path)
    if known is None or known.get("key") != key:
        return None
    try:
        whole = all((folder / row["file"]).stat().st_size == row["bytes"] for row in known["pairs"])
    except OSError:
        return None
    return known if whole else None


def scale_record(folder: Path) -> Path:
    """Where a bone's scale is noted while its pictures are made."""
    return _record_path(folder, "scale")


def scales_as_json(scales: Scales) -> dict[str, Any]:
    """Scales as plain values; :func:`scales_from_json` reads them."""
    return {str(view): asdict(scale) for view, scale in scales.items()}


def scales_from_json(said: Mapping[str, Any]) -> dict[View, ViewScale]:
    """The inverse of :func:`scales_as_json`."""
    return {
        View(view): ViewScale(**{**values, "place": tuple(values["place"])})
        for view, values in said.items()
    }


def write_json(path: Path, value: Any) -> None:
    """Write a value, whole or not at all, and down to the disk before it can be seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _record_path(folder: Path, name: str) -> Path:
    return folder / _WORK / f"{name}.json"


def _write_pair(folder: Path, view: PairView, picture: NDArray[np.uint8]) -> dict[str, Any]:
    """One PNG, written beside its final name first; returns its manifest row."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=1)
    data = buffer.getvalue()
    path = folder / f"{view.key}.png"
    # Two workers may hold the same turn when one was given up for dead: each has its draft.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(data)
    partial.replace(path)
    row = {"file": path.name, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    return row | asdict(view)


@lru_cache(maxsize=1)
def _scan(path: str, _sha256: str) -> Volume:
    """The last scan read stays at hand: a worker mostly goes on with the same bone."""
    return read_scan(Path(path)).volume


@lru_cache(maxsize=1)
def _traced(scan: Volume) -> TracedVolume:
    return prepare(scan)
