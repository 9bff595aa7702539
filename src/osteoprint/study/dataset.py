"""The artificial X-rays of a whole bank, as files."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from osteoprint import __version__
from osteoprint.bank.store import Bank
from osteoprint.errors import BankError, InputError
from osteoprint.frames import Side, View
from osteoprint.study.experiment import Progress, quiet
from osteoprint.study.workers import Workers
from osteoprint.xray.dataset import (
    BLUR_PX,
    MANIFEST,
    RENDERER,
    Setup,
    Subject,
    ViewScale,
    bone_key,
    finish_bone,
    full_scale,
    measure_scale,
    read_manifest,
    read_record,
    render_turn,
    scale_record,
    scales_as_json,
    scales_from_json,
    write_json,
)
from osteoprint.xray.materials import BODY
from osteoprint.xray.protocol import Protocol, film_geometry
from osteoprint.xray.shards import write_shard


@dataclass
class Rendered:
    """What a rendering did.

    Attributes
    ----------
    pairs : pictures in the set.
    made : of them, made now; the rest was there.
    worst_scale : the largest relative error of the scale object's measurement.
    """

    pairs: int = 0
    made: int = 0
    worst_scale: float = 0.0


@dataclass
class _Bone:
    """A bone on its way."""

    subject: Subject
    folder: Path
    scales: dict[View, ViewScale] = field(default_factory=dict)
    turns: dict[float, dict[str, Any]] = field(default_factory=dict)
    manifest: dict[str, Any] | None = None


def render_bank(
    bank: Bank,
    folder: Path,
    protocol: Protocol,
    workers: Workers,
    progress: Progress = quiet,
    *,
    real_proportions: bool = True,
    shards: bool = False,
) -> Rendered:
    """Render a protocol of every bone.

    ``folder`` gets one folder a bone and ``manifest.json`` with everything that was made.
    What an earlier, interrupted call with the same settings finished is kept; bones that
    are no longer in the bank lose their pictures.

    Parameters
    ----------
    bank : its bones with a CT.
    folder : for the pictures.
    protocol : which views.
    workers : where to render; the result does not depend on it.
    real_proportions : all pictures at one scale, the longest bone filling its picture; or
        every bone filling its own.
    shards : also pack each bone's pictures into one tar file.

    Raises
    ------
    BankError : there are no bones.
    InputError : the folder cannot be used, or a bone is too large for its film.
    """
    subjects = subjects_of(bank)
    if folder.is_file():
        raise InputError(folder, "is a file", "name a folder for the pictures")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    longest = film_geometry(max(s.length_mm for s in subjects)).spacing_at_bone_mm[0]
    setup = Setup(protocol, longest if real_proportions else None, 1.0)
    bones = [_Bone(subject, folder / subject.id) for subject in subjects]
    _remove_strangers(folder, {bone.folder.name for bone in bones})
    _measure_scales(bones, setup, workers, progress)
    brightest = max(s.brightest for bone in bones for s in bone.scales.values())
    setup = replace(setup, full_scale=full_scale(brightest))
    done = _render_turns(bones, setup, workers, progress)
    if shards:
        for index, bone in enumerate(bones):
            progress("Packing", index, len(bones))
            write_shard(bone.folder, folder / "shards" / f"{bone.subject.id}.tar")
    else:
        shutil.rmtree(folder / "shards", ignore_errors=True)
    _write_manifest(folder, setup, bones)
    done.pairs = sum(len(bone.manifest["pairs"]) for bone in bones if bone.manifest)
    done.worst_scale = max(
        abs(s.measured_px / s.true_px - 1) for bone in bones for s in bone.scales.values()
    )
    return done


def subjects_of(bank: Bank) -> list[Subject]:
    """Every bone of a bank, ready to be rendered. Raises BankError where there is none."""
    records = bank.bones()
    if not records:
        raise BankError(bank.folder, "holds no bones", "ingest some first")
    return [
        Subject(
            record.id,
            record.name,
            str(bank.volume_path(record).resolve()),
            str(record.volume_sha256),
            tuple(tuple(float(v) for v in row) for row in record.bone_to_world),
            Side(record.side) if record.side else Side.RIGHT,
            record.length_mm,
        )
        for record in records
    ]


def _measure_scales(
    bones: Sequence[_Bone], setup: Setup, workers: Workers, progress: Progress
) -> None:
    """Every bone's scale: read where it was noted, else measured."""
    plain = replace(setup, mm_per_pixel=None)
    missing = []
    for bone in bones:
        known = _known_scales(bone, plain)
        if known is None:
            missing.append(bone)
        else:
            bone.scales = known
    ended = 0

    def done(index: int, scales: dict[View, ViewScale]) -> None:
        nonlocal ended
        bone = missing[index]
        bone.scales = scales
        key = bone_key(bone.subject, plain, {})
        write_json(
            scale_record(bone.folder), {"key": key, "pairs": [], "scales": scales_as_json(scales)}
        )
        ended += 1
        progress("Measuring the scale", ended, len(missing))

    try:
        workers.run(measure_scale, [(bone.subject, plain) for bone in missing], done)
    except ValueError as error:
        raise InputError("scale object", str(error), "ingest bones, not whole limbs") from None


def _known_scales(bone: _Bone, plain: Setup) -> dict[View, ViewScale] | None:
    key = bone_key(bone.subject, plain, {})
    record = read_record(scale_record(bone.folder), key, bone.folder)
    if record is None:
        manifest = read_manifest(bone.folder)
        if manifest is None or manifest.get("scale_key") != key:
            return None
        record = manifest
    return scales_from_json(record["scales"])


def _render_turns(
    bones: Sequence[_Bone], setup: Setup, workers: Workers, progress: Progress
) -> Rendered:
    """All turns of all bones that are not finished; each bone's manifest as soon as it can be."""
    protocol = setup.protocol
    out = Rendered()
    tasks: list[tuple[_Bone, float]] = []
    plain = replace(setup, mm_per_pixel=None, full_scale=1.0)
    for bone in bones:
        key = bone_key(bone.subject, setup, bone.scales)
        bone.manifest = read_record(bone.folder / MANIFEST, key, bone.folder)
        if bone.manifest is None:
            (bone.folder / MANIFEST).unlink(missing_ok=True)
            tasks += [(bone, turn) for turn in protocol.long_deg]
    total = len(bones) * len(protocol)
    ended = total - len(tasks) * len(protocol) // len(protocol.long_deg)

    def done(index: int, result: dict[str, Any]) -> None:
        nonlocal ended
        bone, turn = tasks[index]
        out.made += result["made"]
        ended += len(result["pairs"])
        bone.turns[turn] = result
        if len(bone.turns) == len(protocol.long_deg):
            in_order = [bone.turns[each] for each in protocol.long_deg]
            scale_key = bone_key(bone.subject, plain, {})
            bone.manifest = finish_bone(
                bone.subject, setup, bone.scales, in_order, bone.folder, scale_key
            )
        progress("Rendering", ended, total)

    progress("Rendering", ended, total)
    work = [(b.subject, setup, b.scales, turn, str(b.folder)) for b, turn in tasks]
    workers.run(render_turn, work, done)
    return out


def _write_manifest(folder: Path, setup: Setup, bones: Sequence[_Bone]) -> None:
    """What all bones have in common, and every bone's manifest."""
    protocol = setup.protocol
    entries = []
    for bone in bones:
        entry = dict(bone.manifest or {})
        shard = folder / "shards" / f"{bone.subject.id}.tar"
        if shard.is_file():
            entry["shard"] = f"shards/{shard.name}"
        entries.append(entry)
    manifest = {
        "protocol": asdict(protocol),
        "picture": {
            "rows": setup.rows,
            "columns": 2 * setup.columns,
            "left": View.AP.value,
            "right": View.ML.value,
            "mm_per_pixel_at_bone": setup.mm_per_pixel,
            "white_is_line_integral": setup.full_scale,
            "blur_px": BLUR_PX,
        },
        "materials": [
            {"name": name, "mu_per_mm": {f"{e:g} keV": BODY.mu_per_mm(e)[m] for e in energies}}
            for energies in [protocol.energy_kev]
            for m, name in enumerate(BODY.names)
        ],
        "renderer": RENDERER,
        "osteoprint": __version__,
        "bones": entries,
    }
    write_json(folder / MANIFEST, manifest)
    digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    (folder / "manifest.sha256").write_text(f"{digest}  {MANIFEST}\n", encoding="utf-8")


def _remove_strangers(folder: Path, wanted: set[str]) -> None:
    """Remove the folders of bones that an earlier rendering made and the bank no longer holds."""
    said = read_manifest(folder) or {}
    for entry in said.get("bones", []):
        name = str(entry.get("id", ""))
        if name and name not in wanted and (folder / name / MANIFEST).is_file():
            shutil.rmtree(folder / name)
    for draft in folder.glob("*.partial"):
        draft.unlink(missing_ok=True)
