"""The bones of a bank photographed, embedded and kept; and what their distances prove."""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osteoprint.bank.evidence import Calibration
from osteoprint.bank.records import BoneRecord, ModelRecord
from osteoprint.bank.search import bone_distances, squared_distance
from osteoprint.bank.store import Bank
from osteoprint.errors import BankError, ModelError
from osteoprint.fingerprint.clinic_films import read_pair
from osteoprint.fingerprint.gallery import GALLERY_KEYS, gallery_pictures
from osteoprint.fingerprint.model import Model, ModelCard, save_model
from osteoprint.fingerprint.samples import from_bytes, probe_poses
from osteoprint.study.experiment import Progress, StudyBone, load_bone, quiet
from osteoprint.xray.standard import FRAME_ROOM

# Pairs per bone, at turns between the enrolled ones, from which the threshold is learnt.
_PROBES = 8
# Each bone's pairs are compared with those of so many others, drawn.
_STRANGERS = 50
_PRESETS = ("ideal", "clinic")


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
    trained = _seen_by(made_by.card["trained_on"])
    done = bank.enrolled(made_by)
    rng = np.random.default_rng([seed, 3])
    probes: dict[str, NDArray[np.float32]] = {}
    for index, record in enumerate(sorted(records, key=lambda r: r.id)):
        bone = load_bone(bank, record, model.card.frame)
        if record.id not in done:
            shown = gallery_pictures(bone.sample, model.card.frame, seed)
            bank.enrol(made_by, record, GALLERY_KEYS, model.embed(from_bytes(shown)))
        probes[record.id] = _asked(model, bone, rng)
        progress("Enrolling", index + 1, len(records))
    return _calibrate(bank, made_by, probes, trained=trained)


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


def _between_pairs(probes: dict[str, NDArray[np.float32]], bones: list[BoneRecord]) -> Calibration:
    """What the squared distance between two film pairs proves, neither of them enrolled.

    ``probes`` are (pairs, d) fingerprints of each of the bones. A nearest of many views lies
    nearer than one pair does, strangers' most of all: what was learnt from it would call too many
    pairs of one bone two bones. Strangers are of the same kind and side, if there are any: others
    are too easily told.
    """
    rng = np.random.default_rng(2)
    genuine, impostor = [], []
    for one, bone in enumerate(bones):
        own = probes[bone.id]
        apart = squared_distance(own[:, None], own[None])
        genuine.append(apart[np.triu_indices(len(apart), 1)])
        strangers = [other for other in bones if other.individual != bone.individual]
        alike = [o for o in strangers if (o.bone, o.side) == (bone.bone, bone.side)]
        chosen = alike or strangers
        for index in rng.permutation(len(chosen))[:_STRANGERS]:
            other = probes[chosen[index].id]
            impostor.append((one, squared_distance(own[:, None], other[None]).ravel()))
    return Calibration.fit(
        np.concatenate(genuine),
        np.concatenate([apart for _, apart in impostor]),
        genuine_groups=np.repeat(np.arange(len(bones)), [len(apart) for apart in genuine]),
        impostor_groups=np.repeat([one for one, _ in impostor], [len(a) for _, a in impostor]),
        rng=np.random.default_rng(1),
    )


def _asked(model: Model, bone: StudyBone, rng: np.random.Generator) -> NDArray[np.float32]:
    """(_PROBES, d) fingerprints of films as they may come: plain ones, and a clinic's."""
    kinds = itertools.cycle(_PRESETS)
    shown = [
        read_pair(bone.sample, pose, model.card.frame, kind, rng, or_plain=True)
        for pose, kind in zip(probe_poses(_PROBES, rng), kinds, strict=False)
    ]
    return model.embed(np.stack(shown))


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


def _calibrate(
    bank: Bank, made_by: ModelRecord, probes: dict[str, NDArray[np.float32]], trained: set[str]
) -> dict[str, Any]:
    """Learn the threshold from probes of the enrolled bones and store it with the model."""
    fingerprints = bank.fingerprints(made_by)
    result: dict[str, Any] = {
        "model": made_by.id,
        "enrolled": len(fingerprints.bones),
        "threshold": None,
        "equal_error_rate": None,
        "warnings": [],
    }
    asked = [b for b in fingerprints.bones if b in probes]
    if len(fingerprints.bones) < 2:
        result["warnings"].append("one bone alone gives no threshold; enrol more")
        return result
    distance = np.stack([bone_distances(probes[b], fingerprints) for b in asked])
    column = {b: i for i, b in enumerate(fingerprints.bones)}
    own = np.array([column[b] for b in asked])
    genuine = distance[np.arange(len(asked)), :, own]
    others = distance.copy()
    # One person's left and right are nearly alike: neither is a stranger to the other.
    people = {r.id: r.individual for r in bank.bones()}
    person = np.array([people[b] for b in fingerprints.bones])
    for row, bone in enumerate(asked):
        others[row][:, person == people[bone]] = np.inf
    if not np.isfinite(others.min(axis=2)).all():
        result["warnings"].append("one individual alone gives no threshold; enrol more")
        return result
    # What a film of a bone that is not enrolled would find: the nearest of the others.
    nearest_other = others.min(axis=2)
    groups = np.repeat(np.arange(len(asked)), genuine.shape[1])
    calibration = Calibration.fit(
        genuine.ravel(),
        nearest_other.ravel(),
        genuine_groups=groups,
        impostor_groups=groups,
        rng=np.random.default_rng(0),
    )
    records = {r.id: r for r in bank.bones()}
    between = _between_pairs(probes, [records[bone] for bone in asked])
    bank.set_calibration(made_by, calibration, between)
    seen = sum(b in trained for b in asked)
    if seen:
        result["warnings"].append(
            f"{seen} of {len(asked)} bones were in the training: the threshold and likelihood "
            "ratios are too favourable for bones the network has not seen"
        )
    return result | {"threshold": calibration.threshold, "equal_error_rate": calibration.eer}
