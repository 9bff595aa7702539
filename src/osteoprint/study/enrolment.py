"""The bones of a bank photographed, embedded and kept; and what their distances prove."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osteoprint.bank.records import BoneRecord, ModelRecord
from osteoprint.bank.store import Bank
from osteoprint.errors import BankError, ModelError
from osteoprint.fingerprint.gallery import GALLERY_KEYS, gallery_pictures
from osteoprint.fingerprint.model import Model, ModelCard, save_model
from osteoprint.fingerprint.samples import from_bytes
from osteoprint.study.calibration import (
    Asked,
    Shown,
    ask,
    calibrations,
    pairs_of_each,
    show,
    show_changed,
)
from osteoprint.study.experiment import Progress, load_bone, quiet
from osteoprint.study.training_films import lengths_allowed
from osteoprint.study.workers import cores, open_workers
from osteoprint.xray.standard import FRAME_ROOM, StandardFrame

# Fewer bones than this are done before other processes have started.
_MANY = 4


def enrol_bank(
    bank: Bank, path: Path, model: Model, progress: Progress = quiet, seed: int = 0
) -> dict[str, Any]:
    """Enrol every bone that is not enrolled yet, then calibrate.

    Parameters
    ----------
    bank : open for writing.
    path : the model's file, copied into the bank; ``model`` is the same, loaded. One whose scale
        is that of the bank is given the bank's, unless the bank holds it already at a scale that
        has room for all bones.

    Returns what was done, as plain JSON values. One bone's fingerprints appear all at once,
    so an interrupted enrolment goes on where it stopped. Raises BankError for an empty bank
    and ModelError where the bones are too large for the model's pictures.
    """
    records = bank.bones()
    if not records:
        raise BankError(bank.folder, "holds no bones", "ingest some first")
    if model.card.scale == "of the bank":
        made_by, model = _at_the_banks_scale(bank, model, records)
    else:
        _check_size(path, model, records)
        made_by = _added(bank, path, model)
    learnt = _seen_by(made_by.card["trained_on"])
    lengths = _lengths(records, learnt)
    done, enrolled = bank.enrolled(made_by), bank.fingerprints(made_by)
    pairs = pairs_of_each(len(records))
    asked: dict[str, Asked] = {}
    tasks = [
        (bank.folder, record, model.card.frame, pairs, seed, record.id in done,
         lengths[record.bone] if record.id in learnt else None)
        for record in records
    ]  # fmt: skip

    def one_done(index: int, films: tuple[NDArray[np.uint8] | None, Shown]) -> None:
        record, (gallery, shown) = records[index], films
        if gallery is None:
            own = enrolled.of(record.id)
        else:
            own = model.embed(from_bytes(gallery))
            bank.enrol(made_by, record, GALLERY_KEYS, own)
        asked[record.id] = ask(model, record, own, shown)
        progress("Enrolling", len(asked), len(records))

    with open_workers(cores() if len(records) >= _MANY else 1) as workers:
        workers.run(_films_of, tasks, one_done)
    return _calibrate(bank, made_by, [asked[name] for name in sorted(asked)])


def _films_of(
    folder: Path,
    record: BoneRecord,
    picture: StandardFrame,
    pairs: int,
    seed: int,
    done: bool,
    lengths_mm: tuple[float, float] | None,
) -> tuple[NDArray[np.uint8] | None, Shown]:
    """(what the bone is enrolled with, unless that is done; films that thresholds come from).

    These are of a changed copy of the bone where it may have `lengths_mm`.
    """
    with Bank.open(folder) as bank:
        bone = load_bone(bank, record, picture).sample
    gallery = None if done else gallery_pictures(bone, picture, seed)
    if lengths_mm is None:
        return gallery, show(bone, picture, pairs, seed)
    return gallery, show_changed(bone, picture, pairs, lengths_mm, seed)


def _seen_by(trained_on: dict[str, Any]) -> set[str]:
    """Bones that a network was trained on, and before that the one that it began as."""
    before = trained_on.get("before")
    return {*trained_on["bones"], *(_seen_by(before) if before else ())}


def _added(bank: Bank, path: Path, model: Model) -> ModelRecord:
    card = json.loads(path.with_suffix(".json").read_text())
    return bank.add_model(path, card, dimension=model.card.network.dimension)[0]


def _sha256_of(model: Model) -> str:
    """Of the weights as the bank keeps them: equal settings alone do not make equal networks."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_model(model, path, half=True)
        return hashlib.sha256(path.read_bytes()).hexdigest()


def _at_the_banks_scale(
    bank: Bank, model: Model, records: list[BoneRecord]
) -> tuple[ModelRecord, Model]:
    """The model for bones of this size: one that the bank holds already, or a new one."""
    lengths = [r.length_mm for r in records]
    for held in reversed(bank.models()):
        values = {k: v for k, v in held.card.items() if k != "weights_sha256"}
        try:
            card = ModelCard.from_json(values, str(held.path))
        except ModelError:
            continue  # of an earlier version: of no use here, and no obstacle
        same = (card.network, card.settings, card.trained_on) == (
            model.card.network, model.card.settings, model.card.trained_on,
        )  # fmt: skip
        same = same and _sha256_of(Model(model.encoder, card)) == held.sha256
        if same and max(lengths) <= card.frame.rows * card.frame.spacing_mm / FRAME_ROOM:
            scaled = Model(model.encoder, card)
            _check_size(held.path, scaled, records)
            bank.add_model(held.path, held.card, dimension=held.dimension)  # now the default
            return held, scaled
    scaled = model.at_scale(max(lengths))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_model(scaled, path, half=True)
        _check_size(path, scaled, records)
        return _added(bank, path, scaled), scaled


def _check_size(path: Path, model: Model, records: list[BoneRecord]) -> None:
    """A bone that does not fit on the model's picture would lose its ends unnoticed."""
    height = model.card.frame.rows * model.card.frame.spacing_mm
    for record in records:
        if record.length_mm > 0.98 * height:
            raise ModelError(
                path,
                f"was trained for bones up to {height:.0f} mm, {record.name} is "
                f"{record.length_mm:.0f} mm",
                "train a model on this bank",
            )
        if record.length_mm < 0.2 * height:
            raise ModelError(
                path,
                f"was trained for bones about {height / FRAME_ROOM:.0f} mm long, {record.name} is "
                f"{record.length_mm:.0f} mm",
                "train a model on this bank",
            )


def _lengths(records: list[BoneRecord], learnt: set[str]) -> dict[str, tuple[float, float]]:
    """Of each kind of bone, between which lengths in mm a changed copy of a learnt one lies."""
    kinds: dict[str, list[float]] = {}
    for record in records:
        if record.id in learnt:
            kinds.setdefault(record.bone, []).append(record.length_mm)
    return {kind: lengths_allowed(lengths) for kind, lengths in kinds.items()}


def _calibrate(bank: Bank, made_by: ModelRecord, asked: list[Asked]) -> dict[str, Any]:
    """Learn the thresholds from films of the enrolled bones and store them with the model."""
    fingerprints = bank.fingerprints(made_by)
    changed = sum(each.changed for each in asked)
    result: dict[str, Any] = {
        "model": made_by.id,
        "enrolled": len(fingerprints.bones),
        "threshold": None,
        "equal_error_rate": None,
        "changed_copies": changed,
        "warnings": [],
    }
    if len(fingerprints.bones) < 2:
        result["warnings"].append("one bone alone gives no threshold; enrol more")
        return result
    known = calibrations(asked, fingerprints)
    if known is None:
        result["warnings"].append("one individual alone gives no threshold; enrol more")
        return result
    bank.set_calibrations(made_by, known)
    if known.kinds:
        each = {name: own.nearest.threshold for name, own in known.kinds.items()}
        result["threshold_by_kind"] = each
    return result | {"threshold": known.nearest.threshold, "equal_error_rate": known.nearest.eer}
