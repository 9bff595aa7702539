"""Training films out of the shards that ``render --shards`` writes: nothing is rendered again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from osteoprint.errors import FilmError, InputError
from osteoprint.fingerprint.samples import pair_pictures, to_bytes
from osteoprint.frames import Side, View
from osteoprint.study.workers import cores, in_order
from osteoprint.xray.camera import Geometry
from osteoprint.xray.dataset import MANIFEST
from osteoprint.xray.radiograph import Radiograph
from osteoprint.xray.shards import read_shard
from osteoprint.xray.standard import StandardFrame

if TYPE_CHECKING:
    from osteoprint.study.experiment import Progress, StudyBone

_FIX = "render this bank with --shards again"
# Fewer bytes, some hundreds of pictures, are read before other processes have started.
_SMALL_BYTES = 16_000_000


def shard_films(
    folder: Path, bones: Sequence[StudyBone], frame: StandardFrame, progress: Progress
) -> NDArray[np.uint8]:
    """(bones, pairs, 2, rows, columns) uint8 standard pictures, see ``samples.to_bytes``.

    Parameters
    ----------
    folder : what ``render --shards`` made of a bank that these bones are in.
    bones : whose pictures are wanted.
    frame : the scale of the pictures.
    progress : called with (what, bones done, of how many).

    Raises InputError where the folder holds no such set, or not one of the bones, or a shard is
    damaged.
    """
    path = folder / MANIFEST
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        white = float(said["picture"]["white_is_line_integral"])
        entries = {entry["id"]: entry for entry in said["bones"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(path, "is no manifest of artificial X-rays", _FIX) from None
    tasks = []
    for bone in bones:
        record = bone.record
        entry = entries.get(record.id)
        if entry is None or "shard" not in entry:
            raise InputError(folder, f"holds no shard of {record.name}", _FIX)
        if entry.get("scan_sha256") != record.volume_sha256:
            raise InputError(folder, f"is of another scan of {record.name}", _FIX)
        tasks.append((str(folder / entry["shard"]), entry, white, frame))
    paths = [Path(shard) for shard, *_ in tasks]
    small = sum(p.stat().st_size for p in paths if p.is_file()) < _SMALL_BYTES
    count = 1 if small else min(cores(), len(tasks))
    shown = in_order(_pictures, tasks, count, lambda n: progress("Reading X-rays", n, len(tasks)))
    if len({len(pictures) for pictures in shown}) != 1:
        raise InputError(folder, "has not as many pictures of every bone", _FIX)
    return np.stack(shown)


def _pictures(
    shard: str, entry: Mapping[str, Any], white: float, frame: StandardFrame
) -> NDArray[np.uint8]:
    """(pairs, 2, rows, columns) of one bone."""
    try:
        geometries = {View(v): Geometry(**_tuples(g)) for v, g in _geometries(entry).items()}
        side = Side(entry["side"])
        out = [
            to_bytes(pair_pictures(_radiographs(picture, geometries, side, white), frame))
            for _, picture in read_shard(Path(shard))
        ]
    except (KeyError, TypeError, ValueError):
        raise InputError(shard, "does not fit its manifest", _FIX) from None
    except FilmError as error:
        raise InputError(shard, f"shows no bone that can be read ({error})", _FIX) from None
    if not out:
        raise InputError(shard, "holds no pictures", _FIX)
    return np.stack(out)


def _geometries(entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {view: said["geometry"] for view, said in entry["views"].items()}


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has no tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def _radiographs(
    picture: NDArray[np.uint8], geometries: Mapping[View, Geometry], side: Side, white: float
) -> tuple[Radiograph, Radiograph]:
    """AP, left on the picture, and ML; each lies in the middle of its half."""
    wide = picture.shape[1] // 2
    films = []
    for index, view in enumerate((View.AP, View.ML)):
        geometry = geometries[view]
        top, left = (picture.shape[0] - geometry.rows) // 2, (wide - geometry.columns) // 2
        if top < 0 or left < 0:
            raise ValueError("a film larger than its picture")
        left += index * wide
        own = picture[top : top + geometry.rows, left : left + geometry.columns]
        image = own.astype(np.float32) * np.float32(white / 255.0)
        films.append(Radiograph(image, geometry, view, side, "simulated"))
    return films[0], films[1]
