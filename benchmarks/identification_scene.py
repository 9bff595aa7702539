"""Bones, network and films of the identification benchmark; slow things are kept."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from osteoprint.bank.evidence import Calibration
from osteoprint.bank.records import BoneRecord
from osteoprint.bank.search import Fingerprints
from osteoprint.errors import OsteoprintError
from osteoprint.fingerprint.gallery import GALLERY_KEYS, gallery_pictures
from osteoprint.fingerprint.model import Model, load_model, save_model
from osteoprint.fingerprint.samples import from_bytes, pair_pictures, to_bytes
from osteoprint.fingerprint.settings import TrainingSettings
from osteoprint.study.calibration import (
    Shown,
    ask,
    between_pairs,
    pairs_of_each,
    show_changed,
    to_the_bank,
)
from osteoprint.study.experiment import StudyBone, study_bone, train_on
from osteoprint.study.training_films import frame_for, lengths_allowed
from osteoprint.study.workers import in_order
from osteoprint.xray.standard import StandardFrame
from reconstruction_scene import CACHE, Bone, films, real_femora, scan
from record import commit

SEED = 0
KNOWN = 24
# Clinic films of each bone, and how far they are turned together; each is off by up to 5 degrees
# more about every axis.
PAIRS, TURN_DEG = 24, 16.0
# Of known bones, which teach the threshold and stand in galleries, half as many will do.
FEWER = 12
Row = dict[str, Any]


def row(what: str, value: float | np.floating[Any], unit: str, **more: Any) -> Row:
    return {"what": what, "value": round(float(value), 6), "unit": unit, **more}


def study_bones(bones: Sequence[Bone], first: int, frame: StandardFrame) -> list[StudyBone]:
    """Bones with phantom scans of their surfaces, as they would come out of a bank."""
    out = []
    for index, bone in enumerate(bones, start=1000 + first):
        record = BoneRecord(
            id=f"{index:012x}", name=bone.name, bone="femur", side=bone.side,
            individual=bone.person, length_mm=bone.frame.length_mm, watertight=True, warnings=(),
            source="", created="", surface_sha256="", volume_sha256=None,
            bone_to_world=bone.frame.bone_to_world,
        )  # fmt: skip
        volume = scan(bone, soft_mm=None, seed=index)
        out.append(study_bone(record, bone.surface, volume, frame))
    return out


class Scene:
    """Bones, the network and films, made when first asked for and kept."""

    def __init__(self) -> None:
        bones = real_femora("smir_right_femora")
        self.known, self.unseen = bones[:KNOWN], bones[KNOWN:]
        self.frame = frame_for([b.frame.length_mm for b in self.known])
        # How many bones stand in large galleries.
        self.galleries = (1_000, 10_000)
        self.settings = TrainingSettings(seed=SEED, accelerator="cpu")
        self._calibrations: tuple[Calibration, Calibration] | None = None

    def model(self) -> Model:
        """The default network, trained on the known alone, as ``train`` does.

        The figures say how long films and training took, interruptions left out.
        """
        said = json.dumps([
            asdict(self.settings), asdict(self.frame), [b.name for b in self.known],
        ])  # fmt: skip
        name = f"identification-{hashlib.sha256(said.encode()).hexdigest()[:12]}"
        path = CACHE / f"{name}.safetensors"
        self._watch_file = path.with_suffix(".seconds.json")
        if path.is_file():
            return load_model(path)
        watch = _Watch(self._watch_file)
        checkpoint = path.with_suffix(".checkpoint")
        model = train_on(
            study_bones(self.known, 0, self.frame), self.frame, self.settings, watch,
            checkpoint=checkpoint, films_folder=CACHE / "identification.films",
        )  # fmt: skip
        model.card.figures |= {k: v for k, v in watch.seconds.items() if not isinstance(v, str)}
        save_model(model, path)
        checkpoint.unlink(missing_ok=True)
        return model

    def made_at(self, what: str) -> str:
        """The commit at which "films s" or "training s" of the network were spent."""
        self.model()
        return str(json.loads(self._watch_file.read_text()).get(f"{what} commit"))

    def calibrations(self) -> tuple[Calibration, Calibration]:
        """Of distances to the bank and between pairs, as ``enrol`` learns them of the known."""
        if self._calibrations is None:
            model, bones = self.model(), study_bones(self.known, 0, self.frame)
            lengths = lengths_allowed([b.record.length_mm for b in bones])
            nothing = np.zeros((0, 0), np.float32)  # copies are enrolled with films of their own
            asked = [
                ask(model, bone.record, nothing, shown)
                for bone, shown in zip(
                    bones, changed_films(bones, self.frame, lengths), strict=True
                )
            ]
            prints = embedded(model, enrolled_pictures(self)[:KNOWN])
            vectors, whose = flat(prints)
            bank = Fingerprints.from_rows(
                [bones[k].record.id for k in whose], list(GALLERY_KEYS) * KNOWN, vectors
            )
            found = to_the_bank(asked, bank)
            assert found is not None  # there are 24 people
            self._calibrations = found, between_pairs(asked)
        return self._calibrations


def changed_films(
    bones: Sequence[StudyBone], frame: StandardFrame, lengths: tuple[float, float]
) -> list[Shown]:
    """Films of changed copies of the bones, as ``enrol`` takes them."""
    tasks = [(bone.sample, frame, pairs_of_each(len(bones)), lengths, SEED) for bone in bones]
    return in_order(show_changed, tasks, 2, lambda n: print(f"changed copy {n}", flush=True))


class _Watch:
    """Prints progress, and books the time of films and of training in a file."""

    def __init__(self, path: Path) -> None:
        self._path, self._last = path, time.perf_counter()
        self.seconds: dict[str, Any] = {"films s": 0.0, "training s": 0.0}
        if path.is_file():
            self.seconds = json.loads(path.read_text())

    def __call__(self, what: str, done: float, total: float) -> None:
        now = time.perf_counter()
        kind = "training s" if what.startswith("Training") else "films s"
        self.seconds[kind] += now - self._last
        if f"{kind} commit" not in self.seconds:
            self.seconds[f"{kind} commit"] = commit()
        self._last = now
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self.seconds))
        if "loss" not in what or int(done * 1000) % 50 == 0:
            spent = self.seconds["films s"] + self.seconds["training s"]
            print(f"{spent:7.0f} s  {what} {done:.3g} of {total:g}", flush=True)


def clinic_pictures(
    bones: Sequence[Bone], key: str, frame: StandardFrame, pairs: int = PAIRS
) -> np.ndarray:
    """(bones, pairs, 2, rows, columns) uint8: clinic films read, every one simulated anew.

    Left bones are shown as right ones. A pair that cannot be read is taken again elsewhere.
    """
    said = json.dumps([key, pairs, TURN_DEG, asdict(frame), [b.name for b in bones]])
    folder = CACHE / f"clinic-{hashlib.sha256(said.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{index:02d}.npy" for index in range(len(bones))]
    wanted = [index for index, file in enumerate(files) if not file.is_file()]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(_clinic_of, bones[i], i, key, frame, pairs) for i in wanted]
        for index, job in zip(wanted, jobs, strict=True):
            save_whole(files[index], job.result())
            print(f"clinic films of bone {index + 1} of {len(bones)}", flush=True)
    return np.stack([np.load(file) for file in files])


def enrolled_pictures(scene: Scene) -> np.ndarray:
    """(29, views, 2, rows, columns) uint8: the known bones', then the unseen ones'."""
    return enrolled_of([*scene.known, *scene.unseen], scene.frame)


def enrolled_of(bones: Sequence[Bone], frame: StandardFrame) -> np.ndarray:
    """(bones, views, 2, rows, columns) uint8: what ``enrol`` makes of the bones' scans.

    Their clinic films are of other scans of the bones. Left bones are shown as right ones.
    """
    scanned = study_bones(bones, 0, frame)
    said = json.dumps([GALLERY_KEYS, asdict(frame), [b.record.id for b in scanned]])
    path = CACHE / f"enrolled-{hashlib.sha256(said.encode()).hexdigest()[:12]}.npy"
    if not path.is_file():
        shown = [gallery_pictures(b.sample, frame) for b in scanned]
        save_whole(path, np.stack([
            views[..., ::-1] if bone.mirrored else views
            for bone, views in zip(bones, shown, strict=True)
        ]))  # fmt: skip
    return np.load(path)


def save_whole(path: Path, pictures: np.ndarray) -> None:
    """Keep an array; a file that is there is a finished one."""
    partial = path.with_suffix(".partial.npy")
    np.save(partial, pictures)
    partial.replace(path)


def all_clinic_pictures(scene: Scene) -> np.ndarray:
    """(29, FEWER, 2, rows, columns) uint8: the known bones', then the unseen ones'."""
    known = clinic_pictures(scene.known, "known", scene.frame, FEWER)
    return np.concatenate([known, clinic_pictures(scene.unseen, "unseen", scene.frame)[:, :FEWER]])


def _clinic_of(bone: Bone, index: int, key: str, frame: StandardFrame, pairs: int) -> np.ndarray:
    rng = np.random.default_rng([SEED, index, len(key)])
    out: list[np.ndarray] = []
    for attempt in range(4 * pairs):
        turn = float(rng.uniform(-TURN_DEG, TURN_DEG))
        seed = int(1e6) + 1000 * index + attempt + 100_000 * len(key)
        try:
            pair = films(
                bone, "clinic", seed, turned_deg=(turn, turn), scan_seed=2000 + index + len(key)
            )
            shown = pair_pictures(
                (pair.ap.radiograph, pair.ml.radiograph), frame, stretches=pair.stretches
            )
        except OsteoprintError as error:
            print(f"{bone.name}: {error}", flush=True)
            continue
        # The network was shown right bones; a left one's pictures are a right one's mirrored.
        out.append(to_bytes(shown[:, :, ::-1] if bone.mirrored else shown))
        if len(out) == pairs:
            return np.stack(out)
    raise RuntimeError(f"{bone.name}: too few films could be read")


def embedded(model: Model, pictures: np.ndarray) -> np.ndarray:
    """(bones, pairs, d) of (bones, pairs, 2, rows, columns) uint8."""
    flat = model.embed(from_bytes(pictures.reshape(-1, *pictures.shape[2:])))
    return flat.reshape(*pictures.shape[:2], -1)


def flat(prints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) fingerprints and (n,) whose they are."""
    return prints.reshape(-1, prints.shape[-1]), np.repeat(np.arange(len(prints)), prints.shape[1])
