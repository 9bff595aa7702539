"""A bone's pictures in one file, for training: a tar in the WebDataset layout.

Each sample is two members, ``<key>.png`` and ``<key>.json`` (its row of the manifest). Read in
order, a disk delivers a shard many times as fast as as many small files. The PNGs are the
same bytes as the files beside them.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osteoprint.errors import InputError
from osteoprint.xray.dataset import MANIFEST


def write_shard(folder: Path, path: Path) -> None:
    """Pack a finished bone's pictures, whole or not at all; one that is newer is left alone.

    Raises InputError where the bone has no manifest or a picture is missing.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise InputError(folder, "holds no finished bone", "render it first")
    if path.is_file() and path.stat().st_mtime_ns >= manifest.stat().st_mtime_ns:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row in json.loads(manifest.read_text(encoding="utf-8"))["pairs"]:
            picture = folder / row["file"]
            if not picture.is_file():
                raise InputError(picture, "is missing", "render the bone again")
            key = picture.stem
            _add(tar, f"{key}.png", picture.read_bytes())
            _add(tar, f"{key}.json", json.dumps(row, sort_keys=True).encode())
    partial.replace(path)


def read_shard(path: Path) -> Iterator[tuple[dict[str, Any], NDArray[np.uint8]]]:
    """The pictures of a shard in order: (row of the manifest, (rows, columns) uint8).

    Raises InputError where it is no shard, or is cut short.
    """
    from PIL import Image

    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.name.endswith(".png"):
                    continue
                data = _content(tar, member)
                said = tar.next()
                if said is None:
                    raise tarfile.TarError("ends within a sample")
                row = json.loads(_content(tar, said))
                yield row, np.asarray(Image.open(io.BytesIO(data)))
    except (tarfile.TarError, OSError, ValueError) as error:
        raise InputError(
            path, f"is not a whole shard ({error})", "render with --shards again"
        ) from None


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A member without owner or time: the same pictures give the same file."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise tarfile.TarError(f"{member.name} is not a file")
    return file.read()
