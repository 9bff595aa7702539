"""Artificial X-rays as files: one picture per pair, AP and ML side by side, and a manifest.

A picture appears whole or not at all, and a bone's manifest appears after its pictures:
what was interrupted goes on where it stopped, with the same result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from osteoprint.frames import AnatomicalFrame, Side
from osteoprint.xray.camera import Geometry
from osteoprint.xray.projector import TracedVolume
from osteoprint.xray.protocol import PairView, Protocol, take_protocol

# White in a picture: more than the thickest human long bone attenuates at the protocol's
# energies, the same for every bone, so that brightness can be compared between bones.
FULL_SCALE = 2.0
BLUR_PX = 1.0


def pair_picture(ap: NDArray[np.float32], ml: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(rows, 2 × columns) uint8: AP left, ML right, blurred by one pixel as in the paper."""
    both = np.concatenate([gaussian_filter(image, BLUR_PX) for image in (ap, ml)], axis=1)
    return np.asarray(np.clip(both / FULL_SCALE * 255.0 + 0.5, 0, 255), dtype=np.uint8)


def render_bone(
    traced: TracedVolume,
    frame: AnatomicalFrame,
    side: Side,
    geometry: Geometry,
    protocol: Protocol,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Write every pair of a protocol as PNG into ``folder``; returns the manifest's rows.

    A bone whose manifest is there with the same settings is not rendered again. Each row:
    file, sha256, and the pair's turn, tip and energy.
    """
    settings = {
        "protocol": asdict(protocol),
        "geometry": asdict(geometry),
        "bone_to_world": np.asarray(frame.bone_to_world).round(9).tolist(),
        "side": side.value,
    }
    manifest = folder / "manifest.json"
    if manifest.is_file():
        known = json.loads(manifest.read_text())
        if known["settings"] == json.loads(json.dumps(settings)):
            return list(known["pairs"])
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for view, ap, ml in take_protocol(traced, frame, side, geometry, protocol):
        rows.append(_write_pair(folder, view, pair_picture(ap, ml)))
        if progress:
            progress(len(rows), len(protocol))
    partial = manifest.with_suffix(".partial")
    partial.write_text(json.dumps({"settings": settings, "pairs": rows}, indent=1) + "\n")
    partial.replace(manifest)
    return rows


def _write_pair(folder: Path, view: PairView, picture: NDArray[np.uint8]) -> dict[str, Any]:
    """One PNG, written beside its final name first; returns its manifest row."""
    from PIL import Image

    path = folder / f"{view.key}.png"
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        Image.fromarray(picture).save(file, format="PNG", compress_level=1)
    digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    partial.replace(path)
    return {"file": path.name, "sha256": digest, **asdict(view)}
