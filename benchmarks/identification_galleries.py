"""Large galleries: bones of a shape model and phantoms beside the real ones, a pair of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import lru_cache
from multiprocessing import get_context

import numpy as np
import trimesh

from identification_scene import (
    FEWER,
    KNOWN,
    SEED,
    Row,
    Scene,
    all_clinic_pictures,
    clinic_pictures,
    embedded,
    row,
    save_whole,
    study_bones,
)
from osteoprint.ct.parametric import sample_bone as sample_parametric
from osteoprint.ct.phantom import volume_from_surface
from osteoprint.errors import OsteoprintError
from osteoprint.fingerprint.clinic_films import read_pair
from osteoprint.fingerprint.samples import random_pose, sample_bone, to_bytes
from osteoprint.frames import Side, anatomical_frame
from osteoprint.shape.ssm import ShapeModel
from osteoprint.xray.standard import StandardFrame
from reconstruction_scene import CACHE, corresponding, real_femora

# Of them phantoms of the program's own making; the rest is drawn from the shape model of the
# known bones.
PHANTOMS = 100
# So many of the bones that never were are asked about too, at another angle.
ASKED = 500
_CHUNK = 100
# Pairs of films of each of the many bones of which left and right are compared.
OF_BOTH_SIDES = 4
NOTE = (
    "films of bones that never were: the limb and the finder stood in for, as in training; most "
    "are drawn from a model of the known bones, as half of the training's variants are, too"
)


def gallery_rows(scene: Scene) -> Iterator[Row]:
    """Rank 1 where each bone is enrolled with one pair of films, the probe at another angle.

    Real bones' films are written and read; the others' are stood in for. Were the network to know
    a stand-in when it sees one, real bones would be found too easily: so the unseen ones are also
    asked about by stand-ins of their own, among stand-ins. Five unseen bones are few: femora of
    another source are asked about too, each enrolled in its turn beside those that never were.
    """
    model = scene.model()
    real = embedded(model, all_clinic_pictures(scene))
    stood_in = embedded(model, stand_ins(scene))
    foreign = real_femora("vsd_femora")
    foreign_prints = embedded(model, clinic_pictures(foreign, "sides", scene.frame, OF_BOTH_SIDES))
    rng = np.random.default_rng([SEED, 8])
    for size in scene.galleries:
        others = made_up(size - len(real), scene.frame)
        beside = model.embed_bytes(others[:, 0])
        asked = model.embed_bytes(others[:ASKED, 1])
        hits = _hits(real, beside)
        alike = _hits(np.concatenate([stood_in, real[:KNOWN]]), beside)[: len(stood_in)]
        for name, group in (
            ("real unseen bones asked about, clinic", hits[KNOWN:]),
            ("real known bones asked about, clinic", hits[:KNOWN]),
            ("real unseen bones asked about, their films stood in for as well", alike),
            (f"{len(foreign)} femora of another source, clinic", _alone(foreign_prints, beside)),
        ):
            each = group.reshape(len(group), -1).mean(axis=1)
            yield row(f"rank 1 in a gallery of {size:,}, {name}", group.mean(), "share",
                      n=int(group.size), worst_bone=round(float(each.min()), 4),
                      note=NOTE)  # fmt: skip
        gallery = np.concatenate([real[np.arange(len(real)), rng.integers(0, FEWER, len(real))],
                                  beside])  # fmt: skip
        count = min(ASKED, len(beside))
        answer = (asked[:count] @ gallery.T).argmax(axis=1)
        right = answer == len(real) + np.arange(count)
        yield row(f"rank 1 in a gallery of {size:,}, bones that never were asked about, clinic",
                  right.mean(), "share", n=count, note=NOTE)  # fmt: skip


def _hits(prints: np.ndarray, beside: np.ndarray) -> np.ndarray:
    """(bones, pairs of different films) bool; one pair of each enrolled, each in its turn."""
    bones, pairs, _ = prints.shape
    hits = np.zeros((bones, pairs, pairs), bool)
    for view in range(pairs):
        gallery = np.concatenate([prints[:, view], beside])
        hits[:, :, view] = (prints @ gallery.T).argmax(axis=2) == np.arange(bones)[:, None]
    return hits[:, ~np.eye(pairs, dtype=bool)]


def _alone(prints: np.ndarray, beside: np.ndarray) -> np.ndarray:
    """As :func:`_hits`, each bone beside those that never were and no other."""
    own = prints @ prints.transpose(0, 2, 1)
    nearest = (prints @ beside.T).max(axis=2)
    return (own > nearest[:, :, None])[:, ~np.eye(prints.shape[1], dtype=bool)]


def stand_ins(scene: Scene) -> np.ndarray:
    """(unseen, FEWER, 2, rows, columns) uint8: films of the unseen bones, stood in for."""
    rng = np.random.default_rng([SEED, 9])
    return np.stack([
        np.stack([
            to_bytes(read_pair(bone.sample, random_pose(rng), scene.frame, "clinic", rng))
            for _ in range(FEWER)
        ])
        for bone in study_bones(scene.unseen, KNOWN, scene.frame)
    ])  # fmt: skip


def made_up(count: int, frame: StandardFrame) -> np.ndarray:
    """(count, 2, 2, rows, columns) uint8: two film pairs each, the second at another angle.

    Films of the preset "clinic" with the limb and the finder stood in for, as in training; the
    second pair is there for the first ``ASKED`` only.
    """
    said = json.dumps([_CHUNK, PHANTOMS, ASKED, asdict(frame), SEED])
    folder = CACHE / f"made-up-{hashlib.sha256(said.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{first:05d}.npy" for first in range(0, count, _CHUNK)]
    wanted = [index for index, file in enumerate(files) if not file.is_file()]
    if wanted:
        shape_model()  # once, before processes need it
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(_some, _CHUNK * index, _CHUNK, frame) for index in wanted]
        for index, job in zip(wanted, jobs, strict=True):
            save_whole(files[index], job.result())
            print(f"made-up bones: {_CHUNK * (index + 1)} of {count}", flush=True)
    return np.concatenate([np.load(file) for file in files])[:count]


@lru_cache(maxsize=1)
def shape_model() -> ShapeModel:
    """Of the known bones."""
    known = real_femora("smir_right_femora")[:KNOWN]
    shapes, faces, ok = corresponding("smir24", known, "femur")
    good = [shape for shape, fine in zip(shapes, ok, strict=True) if fine]
    return ShapeModel.build(np.stack(good), faces, bone="femur", side=Side.RIGHT)


def _some(first: int, count: int, frame: StandardFrame) -> np.ndarray:
    return np.stack([_one(number, frame) for number in range(first, first + count)])


def _one(number: int, frame: StandardFrame) -> np.ndarray:
    """(2, 2, rows, columns) of one bone; what has no frame or no film is drawn again."""
    for attempt in range(20):
        rng = np.random.default_rng([SEED, 4, number, attempt])
        try:
            return _films(_surface(number, rng), number, frame, rng)
        except OsteoprintError:
            continue
    raise RuntimeError(f"bone {number}: no film of it could be read")


def _surface(number: int, rng: np.random.Generator) -> trimesh.Trimesh:
    if number < PHANTOMS:
        return sample_parametric(rng, kind="femur", size="human", side=Side.RIGHT)[0]
    model = shape_model()
    return trimesh.Trimesh(model.sample(rng), model.faces, process=False)


def _films(
    surface: trimesh.Trimesh, number: int, frame: StandardFrame, rng: np.random.Generator
) -> np.ndarray:
    axes = anatomical_frame(
        np.asarray(surface.vertices), np.asarray(surface.faces), bone="femur", side=Side.RIGHT
    )
    volume = volume_from_surface(surface, voxel_mm=2.0, bone_to_world=axes.bone_to_world, rng=rng)
    bone = sample_bone(str(number), volume, axes, Side.RIGHT, frame)
    pairs: Sequence[np.ndarray] = [
        to_bytes(read_pair(bone, random_pose(rng), frame, "clinic", rng))
        for _ in range(2 if number < ASKED else 1)
    ]
    return np.stack([pairs[0], pairs[-1]])


def side_rows(scene: Scene) -> Iterator[Row]:
    """Left and right of one person: how often the other side is found, and how near it lies.

    All bones of ``vsd_femora``, left ones shown as right ones; the network knows none of them.
    Each bone is enrolled with half of its films and asked about with the other half; then with
    the bone itself left out.
    """
    model = scene.model()
    bones = real_femora("vsd_femora")
    prints = embedded(model, clinic_pictures(bones, "sides", scene.frame, OF_BOTH_SIDES))
    half = OF_BOTH_SIDES // 2
    apart = np.sqrt(
        ((prints[:, half:, None, None] - prints[None, None, :, :half]) ** 2).sum(-1)
    ).min(axis=3)  # fmt: skip
    index = np.arange(len(bones))
    people = np.array([b.person for b in bones])
    twin = (people[:, None] == people[None, :]) & (index[:, None] != index[None, :])
    paired = twin.any(axis=1)
    answer = apart.argmin(axis=2)
    yield row("rank 1, vsd femora, clinic, bone enrolled", (answer == index[:, None]).mean(),
              "share", n=answer.size)  # fmt: skip
    other = np.take_along_axis(twin, answer, axis=1)[paired]
    yield row("the other side is named instead, bone enrolled", other.mean(), "share",
              n=other.size)  # fmt: skip
    without = apart.copy()
    without[index, :, index] = np.inf
    answer = without.argmin(axis=2)
    found = np.take_along_axis(twin, answer, axis=1)[paired]
    yield row("the other side is found, bone itself not enrolled", found.mean(), "share",
              n=found.size)  # fmt: skip
