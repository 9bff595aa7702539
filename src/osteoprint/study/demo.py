"""The main job on bones the program makes itself: nothing is needed but this package."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from osteoprint.bank.records import NewBone
from osteoprint.bank.store import Bank
from osteoprint.ct.parametric import sample_bone as sample_parametric
from osteoprint.ct.phantom import volume_from_surface
from osteoprint.ct.reading import write_volume
from osteoprint.errors import InputError
from osteoprint.fingerprint.model import save_model
from osteoprint.fingerprint.samples import SampleBone
from osteoprint.fingerprint.settings import TrainingSettings
from osteoprint.frames import Side, View, anatomical_frame
from osteoprint.study.enrolment import enrol_bank
from osteoprint.study.experiment import Progress, StudySettings, load_bones, quiet
from osteoprint.study.report import write_report
from osteoprint.study.whole_way import StudyResult, run_study
from osteoprint.xray.camera import Pose
from osteoprint.xray.film import write_film
from osteoprint.xray.protocol import film_geometry, take_pair

BONES, UNSEEN = 29, 5
QUICK_BONES, QUICK_UNSEEN = 12, 3
_MARK = ".osteoprint-demo"


def run_demo(
    folder: Path, progress: Progress = quiet, *, quick: bool = False, seed: int = 0
) -> StudyResult:
    """Phantoms -> CT -> X-rays -> training -> identity and shape of unseen bones -> report.

    Leaves in ``folder``: ``bank/`` with every bone enrolled, ``model.safetensors``, a pair
    of films of an enrolled bone in ``films/``, ``report.html`` and ``report.json``.
    Raises InputError where ``folder`` holds something that is not a demo.
    """
    _make_room(folder)
    count, unseen = (QUICK_BONES, QUICK_UNSEEN) if quick else (BONES, UNSEEN)
    names = [f"phantom-{i:02d}" for i in range(count)]
    with Bank.open(folder / "bank", write=True, create=True) as bank:
        make_phantoms(bank, names, seed, progress)
        training = TrainingSettings(
            steps=100 if quick else 200,
            bones_per_batch=24,
            variants_per_bone=4,
            poses_per_variant=6 if quick else 8,
            presets=("ideal",),
            seed=seed,
        )
        settings = StudySettings(
            unseen=tuple(names[-unseen:]),
            training=training,
            probes=8,
            seed=seed,
            methods=("refined", "statistical"),
        )
        bones = load_bones(bank, progress)
        result = run_study(bones, settings, progress)
        save_model(result.experiment.model, folder / "model.safetensors")
        enrol_bank(bank, folder / "model.safetensors", result.experiment.model, progress)
    write_films(folder / "films", bones[0].sample, bones[0].record.length_mm)
    write_report(folder, result, title="Phantom femora")
    return result


def make_phantoms(
    bank: Bank,
    names: list[str],
    seed: int,
    progress: Progress = quiet,
    *,
    kind: Literal["femur", "tibia"] = "femur",
    size: Literal["human", "cat"] = "human",
    voxels: int = 450,
) -> None:
    """Add one parametric bone per name, an individual of its own, scanned so many voxels long."""
    for index, name in enumerate(names):
        rng = np.random.default_rng([seed, index])
        surface, _ = sample_parametric(rng, kind=kind, size=size, side=Side.RIGHT)
        frame = anatomical_frame(surface.vertices, surface.faces, bone=kind, side=Side.RIGHT)
        volume = volume_from_surface(
            surface, voxel_mm=frame.length_mm / voxels, bone_to_world=frame.bone_to_world, rng=rng
        )
        bank.add_bone(
            NewBone(
                name=name,
                individual=name,
                surface=surface,
                length_mm=frame.length_mm,
                bone_to_world=frame.bone_to_world,
                bone=kind,
                side=Side.RIGHT,
                volume=partial(write_volume, volume),
                warnings=frame.warnings,
                source=f"parametric {size} {kind}, seed {seed}/{index}",
            )
        )
        progress("Making phantoms", index + 1, len(names))


def write_films(folder: Path, bone: SampleBone, length_mm: float) -> None:
    """A pair of films of one bone, as a user would bring them: 16-bit PNG with sidecars."""
    folder.mkdir(parents=True, exist_ok=True)
    films = take_pair(
        bone.traced,
        bone.frame,
        bone.side,
        film_geometry(length_mm),
        (Pose(9.0, 4.0), Pose(9.0, -3.0)),
        80.0,
    )
    for film in films:
        write_film(film, folder / f"{'ap' if film.view is View.AP else 'ml'}.png")


def _make_room(folder: Path) -> None:
    """An earlier demo is replaced; any other folder with something in it is left alone."""
    if folder.is_file():
        raise InputError(folder, "is a file", "name a folder for the demo")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / _MARK).is_file():
            first = min(p.name for p in folder.iterdir())
            raise InputError(folder, f"holds {first}, which is no demo's", "name a new folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).write_text("Made by 'osteoprint demo', which replaces this folder.\n")
