"""The artificial X-rays of a whole bank, as files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from osteoprint.bank.store import Bank
from osteoprint.ct.reading import read_scan
from osteoprint.errors import BankError, InputError
from osteoprint.frames import AnatomicalFrame, Side
from osteoprint.study.experiment import Progress, quiet
from osteoprint.xray.dataset import render_bone
from osteoprint.xray.projector import prepare
from osteoprint.xray.protocol import Protocol, film_geometry


def render_bank(bank: Bank, folder: Path, protocol: Protocol, progress: Progress = quiet) -> int:
    """Render a protocol of every bone, all at one scale; returns the number of pairs.

    ``folder`` gets one folder a bone and ``manifest.json`` with everything that was made.
    """
    records = bank.bones()
    if not records:
        raise BankError(bank.folder, "holds no bones", "ingest some first")
    if folder.is_file():
        raise InputError(folder, "is a file", "name a folder for the pictures")
    geometry = film_geometry(max(r.length_mm for r in records))
    bones = []
    for index, record in enumerate(records):
        side = Side(record.side) if record.side else Side.RIGHT
        frame = AnatomicalFrame(np.asarray(record.bone_to_world), side, record.length_mm)
        traced = prepare(read_scan(bank.volume_path(record)).volume)

        def tell(done: int, total: int, before: int = index) -> None:
            progress("Rendering", before * total + done, len(records) * total)

        rows = render_bone(traced, frame, side, geometry, protocol, folder / record.id, tell)
        bones.append({"id": record.id, "name": record.name, "pairs": rows})
    manifest = {
        "protocol": protocol.name,
        "mm_per_pixel_at_bone": geometry.spacing_at_bone_mm,
        "bones": bones,
    }
    text = json.dumps(manifest, indent=1) + "\n"
    partial = folder / "manifest.partial"
    partial.write_text(text)
    partial.replace(folder / "manifest.json")
    (folder / "manifest.sha256").write_text(hashlib.sha256(text.encode()).hexdigest() + "\n")
    return sum(len(b["pairs"]) for b in bones)
