"""The bone model of a bank: learnt once from its bones, kept beside them until they change."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from osteoprint.bank.records import BoneRecord
from osteoprint.bank.store import Bank
from osteoprint.ct.reading import read_scan
from osteoprint.ct.volume import Volume
from osteoprint.errors import BankError, ModelError
from osteoprint.frames import Side
from osteoprint.reconstruct.bone_model import FILE, BoneModel
from osteoprint.shape.correspondence import Correspondence
from osteoprint.shape.group import Group, correspond

Floats = NDArray[np.float64]
Scan = tuple[Volume, Floats]
Progress = Callable[[str, float, float], None]

FOLDER = "shapes"
# So many bones make the template, to which all are registered.
BASIS = 12
# Scans that say how dense bone is beneath its surface.
_SCANS = 6
# Fewer bones make no model.
LEAST_BONES = 4


def quiet(what: str, done: float, total: float) -> None:
    """A progress that says nothing."""


def bank_model(
    bank: Bank,
    *,
    bone: str | None = None,
    progress: Progress = quiet,
    workers: int = 1,
    leave_out: frozenset[str] = frozenset(),
) -> BoneModel:
    """The model of a bank's bones of one kind; learnt if need be, which takes minutes.

    Parameters
    ----------
    bank : open for reading.
    bone : "femur", "tibia", ...; None where the bank holds one kind only.
    progress : called with (step, done, of how many).
    workers : processes that register bones.
    leave_out : individuals that must not be known.

    Raises BankError where the bank holds several kinds and none is named, or too few bones.
    """
    records = chosen(bank, bone, leave_out)
    path = bank.folder / FOLDER / f"{records[0].bone}-{_digest(records)}.safetensors"
    if path.is_file():
        with suppress(ModelError):
            return BoneModel.load(path)
    model = learn(bank, records, progress, workers)
    # A bank on a medium that cannot be written to is learnt again each time.
    with suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        draft = path.with_name(f"{path.stem}.{os.getpid()}.draft")
        model.save(draft)
        draft.replace(path)
    return model


def chosen(bank: Bank, bone: str | None, leave_out: frozenset[str]) -> list[BoneRecord]:
    """The bones of a kind, ordered by id, that a model can be made of.

    Raises BankError as :func:`bank_model`.
    """
    records = [r for r in bank.bones() if r.individual not in leave_out and r.watertight]
    kinds = sorted({r.bone for r in records})
    if bone is None and len(kinds) > 1:
        raise BankError(
            bank.folder, f"holds {', '.join(kinds)}", "say which bone is on the films with --bone"
        )
    records = sorted((r for r in records if bone in (None, r.bone)), key=lambda r: r.id)
    if len({r.individual for r in records}) < LEAST_BONES:
        raise BankError(
            bank.folder,
            f"holds {len(records)} closed bones{f' of kind {bone}' if bone else ''}",
            f"ingest bones of at least {LEAST_BONES} individuals to learn their shape",
        )
    return records


def learn(
    bank: Bank, records: Sequence[BoneRecord], progress: Progress = quiet, workers: int = 1
) -> BoneModel:
    """Register the bones and build their model.

    Bones that cannot be registered are left out. Raises BankError where too few remain.
    """
    side = model_side(records)
    ordered = _one_of_each_first(records)
    step = "Learning shapes"
    group = correspond(
        [bank.surface(r) for r in ordered],
        mirrored=[_mirrored(r, side) for r in ordered],
        sources=[r.name for r in ordered],
        bone=ordered[0].bone, side=side, basis=BASIS, workers=workers,
        progress=lambda done, total: progress(step, done, total + 1),
    )  # fmt: skip
    model = model_of_group(
        group,
        bank.folder,
        people=[r.individual for r in ordered],
        members=[r.id for r in ordered],
        scans={
            k: partial(_scan_of, bank, r)
            for k, r in enumerate(ordered)
            if r.volume_sha256 is not None
        },
        bone=ordered[0].bone,
        side=side,
    )
    progress(step, 1, 1)
    return model


def model_of_group(
    group: Group,
    source: str | Path,
    *,
    people: Sequence[str],
    members: Sequence[str],
    scans: Mapping[int, Callable[[Correspondence], Scan]],
    bone: str,
    side: Side,
) -> BoneModel:
    """The model of registered bones; those that could not be registered are left out.

    Parameters
    ----------
    group : the bones.
    source : what a message calls them all.
    people, members : whose each bone is, and what it is called.
    scans : by the bone's place in the group, how to get its scan, and its (n, 3) vertices in
        the scan's world, mm; a few are asked.
    bone, side : what they are.

    Raises BankError where bones of fewer than LEAST_BONES individuals remain.
    """
    good = [k for k, member in enumerate(group.members) if member.ok]
    if len({people[k] for k in good}) < LEAST_BONES:
        raise BankError(source, "holds too few bones that are alike", "ingest more")
    scanned = [k for k in good if k in scans]
    picks = np.unique(np.linspace(0, len(scanned) - 1, min(_SCANS, len(scanned))).astype(int))
    return BoneModel.build(
        group.shapes,
        group.template.faces,
        [scans[scanned[p]](group.members[scanned[p]]) for p in picks],
        bone=bone,
        side=side,
        people=[people[k] for k in good],
        members=[members[k] for k in good],
    )


def _scan_of(bank: Bank, record: BoneRecord, member: Correspondence) -> Scan:
    """A bone's scan; its surface lies in the scan's world as it is."""
    return read_scan(bank.volume_path(record)).volume, member.vertices


def model_side(records: Sequence[BoneRecord]) -> Side:
    """The side that most bones are of; right where it is not known."""
    left = sum(r.side is Side.LEFT for r in records)
    return Side.LEFT if left > len(records) - left else Side.RIGHT


def _mirrored(record: BoneRecord, side: Side) -> bool:
    return record.side is not None and record.side is not side


def _one_of_each_first(records: Sequence[BoneRecord]) -> list[BoneRecord]:
    """First one bone of each individual, then the others."""
    seen: set[str] = set()
    first: list[BoneRecord] = []
    rest: list[BoneRecord] = []
    for record in records:
        (rest if record.individual in seen else first).append(record)
        seen.add(record.individual)
    return first + rest


def _digest(records: Sequence[BoneRecord]) -> str:
    """Of everything the model depends on."""
    told = [
        f"{FILE.kind} {FILE.version}",
        *(f"{r.id} {r.bone} {r.side} {r.individual}" for r in records),
    ]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
