"""The shape of a bone from two films: all methods on the same films, measured against the truth.

    python benchmarks/reconstruction.py [--parts femora,other,...]

Every film is written to a file and read again: the bone is found on it, nothing is clicked. The
model knows neither the bone nor anybody's other side. Distances are symmetric, area-weighted,
point to surface, after rigid alignment, never scaled. Parts:

- ``femora``: 24 real femora known, 5 unseen; presets ideal and clinic; all methods.
- ``leave-one-out``: each of 29, the model from the other 28, the template from another source.
- ``other``: the model from one source of femora, films of another.
- ``trouble``: one film, a cut film, a slanted bone, a wrong angle.
- ``tibiae``, ``cats``: phantoms of another bone and of another size, nothing changed.
- ``cost``: time and memory of one bone in a fresh process.

Registrations are kept in ``benchmarks/.cache``. Each row of the result says of which part and of
which commit it is; running one part leaves the rows of the others.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import trimesh

from osteoprint.errors import InputError
from osteoprint.reconstruct.bone_model import BoneModel
from osteoprint.reconstruct.reconstruction import DOUBTFUL_MM, Reconstruction, reconstruct
from osteoprint.shape.alignment import align_rigid
from osteoprint.shape.distance import SurfaceDistance, surface_distance
from osteoprint.shape.morphometry import Morphometry, measure_bone
from osteoprint.shape.surface_index import SurfaceIndex
from osteoprint.xray.film import Film
from osteoprint.xray.film_pair import FilmPair
from reconstruction_nearest import nearest_by_fingerprint
from reconstruction_scene import (
    CACHE,
    Bone,
    corresponding,
    films,
    learn,
    phantoms,
    real_femora,
)
from record import RESULTS, commit, write_result

SEED = 0
RESULT = RESULTS / "reconstruction.json"
# What is measured is the code as it was when the benchmark began.
COMMIT = commit()
KNOWN = 24
CLASSICAL = ("laplacian", "ffd", "tps", "contour")
METHODS = ("refined", "statistical", *CLASSICAL)
Row = dict[str, Any]
MEASURES = (
    ("length_mm", "length"),
    ("head_diameter_mm", "head diameter"),
    ("neck_shaft_angle_deg", "neck-shaft angle"),
    ("anteversion_deg", "anteversion"),
    ("epicondylar_width_mm", "epicondylar width"),
)


class Judged:
    """One reconstruction beside the truth."""

    def __init__(self, found: Reconstruction, bone: Bone) -> None:
        moved, self.distance = compared(found.surface, bone)
        self.expected = None if found.doubt is None else found.doubt.expected_rms_mm
        self.feared = None if found.doubt is None else found.doubt.feared_rms_mm
        self.warnings = found.warnings
        self.held = None
        if found.doubt is not None:
            far = SurfaceIndex.build(bone.surface, bone.name).nearest(moved.vertices)[0]
            self.held = float((far <= 1.645 * found.doubt.deviation_mm).mean())
        self.surface = found.surface

    @property
    def flagged(self) -> bool:
        """Was the user told that the shape may be off by more than DOUBTFUL_MM?"""
        return self.feared is not None and self.feared > DOUBTFUL_MM


def compared(surface: trimesh.Trimesh, bone: Bone) -> tuple[trimesh.Trimesh, SurfaceDistance]:
    """A surface aligned to a bone, and how far it is from it."""
    moved = surface.copy()
    moved.apply_transform(align_rigid(surface, bone.surface))
    return moved, surface_distance(moved, bone.surface)


def say(*words: object) -> None:
    """Progress for the log."""
    print(time.strftime("%H:%M:%S"), *words, flush=True)


def judged(
    model: BoneModel, seen: Sequence[Film], bone: Bone, methods: Sequence[str]
) -> dict[str, Judged]:
    """All methods on the same films."""
    return {m: Judged(reconstruct(model, seen, m), bone) for m in methods}  # type: ignore[arg-type]


def both(pair: FilmPair) -> list[Film]:
    return [pair.ap, pair.ml]


def row(
    what: str,
    values: Sequence[float] | float,
    unit: str = "mm",
    note: str = "",
    *,
    ci: bool = False,
) -> Row:
    """One row: the mean of values; with a bootstrap interval of the mean where asked."""
    numbers = np.atleast_1d(np.asarray(values, float))
    made: Row = {"what": what, "value": round(float(numbers.mean()), 5), "unit": unit}
    made["n"] = len(numbers)
    if ci and len(numbers) > 2:
        rng = np.random.default_rng(SEED)
        means = rng.choice(numbers, (4000, len(numbers))).mean(axis=1)
        made["ci95"] = [round(float(v), 4) for v in np.percentile(means, [2.5, 97.5])]
    return made | ({"note": note} if note else {})


def each(values: Sequence[float]) -> str:
    return "bones " + ", ".join(f"{v:.2f}" for v in values)


def method_rows(
    where: str, results: Sequence[dict[str, Judged]], methods: Sequence[str], *, ci: bool = False
) -> list[Row]:
    """Mean RMS, relative RMS, Hausdorff distance, worst bone, of each method."""
    rows = []
    for method in methods:
        found = [r[method] for r in results]
        rms = [j.distance.rms_mm for j in found]
        rows += [
            row(f"{method}, {where}: mean RMS", rms, note=each(rms), ci=ci),
            row(f"{method}, {where}: worst bone's RMS", max(rms)),
            row(f"{method}, {where}: mean RMS, relative to the diagonal",
                [j.distance.rms_relative for j in found], "ratio", ci=ci),
            row(f"{method}, {where}: mean Hausdorff distance",
                [j.distance.hausdorff_mm for j in found], ci=ci),
        ]  # fmt: skip
        held = [j.held for j in found if j.held is not None]
        if held:
            rows += [
                row(f"{method}, {where}: points whose 90 % interval holds the truth", held,
                    "ratio", note=each(held)),
                row(f"{method}, {where}: expected RMS", [j.expected or 0.0 for j in found]),
                row(f"{method}, {where}: RMS that nine of ten bones should stay below",
                    [j.feared or 0.0 for j in found],
                    note=f"{sum(r <= (j.feared or 0.0) for r, j in zip(rms, found, strict=True))} "
                    f"of {len(found)} do"),
            ]  # fmt: skip
    behind = [
        f"{m} on bone {k}" for k, r in enumerate(results) for m in methods
        if m in CLASSICAL and r[m].distance.rms_mm <= r["refined"].distance.rms_mm
    ]  # fmt: skip
    if set(CLASSICAL) & set(methods):
        note = "behind: " + "; ".join(behind) if behind else "ahead of each on every bone"
        rows.append(row(f"refined, {where}: bones on which another approach was as good",
                        len(behind), "count", note))  # fmt: skip
    return rows


def simple_answers(
    model: BoneModel, shapes: np.ndarray, known: Sequence[Bone], unseen: Sequence[Bone]
) -> tuple[list[Row], list[list[float]]]:
    """The mean shape, the bone of the same length, the best known one; and all distances."""
    table = [[compared(k.surface, u)[1].rms_mm for k in known] for u in unseen]
    lengths = np.array([k.frame.length_mm for k in known])
    same = [
        t[int(np.abs(lengths - u.frame.length_mm).argmin())]
        for t, u in zip(table, unseen, strict=True)
    ]
    mean = [compared(model.shape.mesh, u)[1].rms_mm for u in unseen]
    return [
        row("best known bone there is: mean RMS", [min(t) for t in table], ci=True),
        row("known bone of the same length: mean RMS", same, ci=True),
        row("mean shape: mean RMS", mean, ci=True),
        row("any known bone: mean RMS", [float(np.mean(t)) for t in table], ci=True),
    ], table


def part_femora() -> list[Row]:
    """24 known, 5 unseen."""
    bones = real_femora("smir_right_femora")
    known, unseen = bones[:KNOWN], bones[KNOWN:]
    shapes, faces, ok = corresponding("smir24", known, "femur")
    model = learn(known, shapes, faces, ok, "femur")
    rows, table = simple_answers(model, shapes, known, unseen)
    best = float(np.mean([min(t) for t in table]))
    for preset in ("ideal", "clinic"):
        results, pairs, chosen = [], [], []
        for index, bone in enumerate(unseen):
            pair = films(bone, preset, SEED + 10 * index)
            pairs.append(pair)
            results.append(judged(model, both(pair), bone, METHODS))
            refined = reconstruct(model, both(pair), "refined")
            chosen.append(int(model.nearest_members(refined.vertices)[0][0]))
            say(preset, bone.name, {m: round(j.distance.rms_mm, 2) for m, j in results[-1].items()})
        rows += method_rows(preset, results, METHODS)
        named = nearest_by_fingerprint(known, pairs)
        for how, picks in (("by the refined shape", chosen), ("by fingerprint", named)):
            picked = [t[c] for t, c in zip(table, picks, strict=True)]
            over = float(np.mean(picked)) / best
            rows += [
                row(f"nearest, {preset}: {how}, mean RMS", picked, note=each(picked)),
                row(f"nearest, {preset}: {how}, over the best there is", over, "ratio"),
            ]
    return rows


def part_leave_one_out() -> list[Row]:
    """Every femur of one source once unseen."""
    bones = real_femora("smir_right_femora")
    basis = [b for b in real_femora("vsd_femora") if b.name.split("_")[0] not in ("z064", "z066")]
    people: dict[str, Bone] = {}
    for bone in basis:
        people.setdefault(bone.person, bone)
    shapes, faces, ok = corresponding("smir29", bones, "femur", template_of=list(people.values()))
    results, answers = [], []
    for index, bone in enumerate(bones):
        rest = [k for k in range(len(bones)) if k != index]
        others = [bones[k] for k in rest]
        model = learn(others, shapes[rest], faces, [ok[k] for k in rest], "femur")
        pair = films(bone, "clinic", SEED + 100 + index)
        results.append(judged(model, both(pair), bone, METHODS))
        answers.append(simple_answers(model, shapes, others, [bone])[0])
        say(
            "leave-one-out",
            bone.name,
            {m: round(j.distance.rms_mm, 2) for m, j in results[-1].items()},
        )
    where = "clinic, leave-one-out"
    rows = method_rows(where, results, METHODS, ci=True)
    for column, what in enumerate(a["what"] for a in answers[0]):
        rows.append(row(f"leave-one-out, {what}", [a[column]["value"] for a in answers], ci=True))
    return rows + measured_rows(where, results, bones)


def measured_rows(
    where: str, results: Sequence[dict[str, Judged]], bones: Sequence[Bone]
) -> list[Row]:
    """What is measured on the refined surfaces, less the same on the bones."""
    off: dict[str, list[float]] = {name: [] for name, _ in MEASURES}
    for found, bone in zip(results, bones, strict=True):
        try:
            ours = measure_bone(found["refined"].surface, bone="femur", side=bone.side)
            true = measure_bone(bone.surface, bone="femur", side=bone.side)
        except InputError as error:
            say("not measured:", error)
            continue
        for name, _ in MEASURES:
            one, other = _measure(ours, name), _measure(true, name)
            if one is not None and other is not None:
                off[name].append(one - other)
    return [
        row(f"refined, {where}: {words}, mean absolute error", np.abs(off[name]),
            "deg" if name.endswith("deg") else "mm",
            f"bias {np.mean(off[name]):+.2f}, worst {np.abs(off[name]).max():.2f}", ci=True)
        for name, words in MEASURES if off[name]
    ]  # fmt: skip


def _measure(found: Morphometry, name: str) -> float | None:
    value = getattr(found, name, None)
    return None if value is None else float(value)


def part_other() -> list[Row]:
    """The model from one source, films of another."""
    known = real_femora("smir_right_femora")
    shapes, faces, ok = corresponding("smir-all", known, "femur")
    model = learn(known, shapes, faces, ok, "femur")
    results, bones = [], real_femora("vsd_femora")
    for index, bone in enumerate(bones):
        pair = films(bone, "clinic", SEED + 200 + index)
        results.append(judged(model, both(pair), bone, ("refined", "statistical")))
        say(
            "other source",
            bone.name,
            {m: round(j.distance.rms_mm, 2) for m, j in results[-1].items()},
        )
    where = "clinic, model of another source"
    rows = method_rows(where, results, ("refined", "statistical"), ci=True)
    left = [r["refined"].distance.rms_mm for r, b in zip(results, bones, strict=True) if b.mirrored]
    return [*rows, row(f"refined, {where}: mean RMS of left femora, mirrored", left)]


def part_trouble() -> list[Row]:
    """What is hard: never silently wrong."""
    bones = real_femora("smir_right_femora")
    known, unseen = bones[:KNOWN], bones[KNOWN:]
    shapes, faces, ok = corresponding("smir24", known, "femur")
    model = learn(known, shapes, faces, ok, "femur")
    tilt = float(np.rad2deg(np.arccos(0.94)))
    cases: dict[str, tuple[dict[str, Any], slice]] = {
        "AP 6 % shorter than ML": ({"tilted_deg": (tilt, 0.0)}, slice(0, 2)),
        "AP 6 % shorter than ML, tilted the other way": ({"tilted_deg": (-tilt, 0.0)}, slice(0, 2)),
        "ML turned by 10 degrees": ({"turned_deg": (0.0, 10.0)}, slice(0, 2)),
        "AP only": ({}, slice(0, 1)),
        "ML only": ({}, slice(1, 2)),
        "distal third missing": ({"shown": (0.0, 0.667)}, slice(0, 2)),
    }
    rows = []
    for what, (how, which) in cases.items():
        results = []
        for index, bone in enumerate(unseen):
            pair = films(bone, "clinic", SEED + 300 + index, **how)
            results.append(judged(model, both(pair)[which], bone, ("refined", "statistical")))
        refined = [r["refined"] for r in results]
        silent = sum(j.distance.rms_mm > DOUBTFUL_MM and not j.flagged for j in refined)
        say(
            what,
            [
                tuple(round(v or 0, 2) for v in (j.distance.rms_mm, j.expected, j.feared))
                for j in refined
            ],
        )
        where = f"clinic, {what}"
        rows += method_rows(where, results, ("refined", "statistical"))
        rows += [
            row(f"refined, {where}: bones off by more than 2 mm, not flagged", silent, "count"),
            row(f"refined, {where}: bones flagged", sum(j.flagged for j in refined), "count"),
        ]
    return rows


def _phantom_part(kind: str, size: str, key: str) -> list[Row]:
    bones = phantoms(kind, size, 29, SEED)
    known, unseen = bones[:KNOWN], bones[KNOWN:]
    shapes, faces, ok = corresponding(key, known, kind)
    model = learn(known, shapes, faces, ok, kind)
    rows, _ = simple_answers(model, shapes, known, unseen)
    where = f"clinic, {size} {kind} phantoms"
    results = []
    for index, bone in enumerate(unseen):
        pair = films(bone, "clinic", SEED + 400 + index)
        results.append(judged(model, both(pair), bone, ("refined", "statistical")))
        say(
            where, bone.name, {m: round(j.distance.rms_relative, 5) for m, j in results[-1].items()}
        )
    rows = [r | {"what": f"{size} {kind} phantoms, {r['what']}"} for r in rows]
    return rows + method_rows(where, results, ("refined", "statistical"))


def part_tibiae() -> list[Row]:
    """Another bone."""
    return _phantom_part("tibia", "human", "tibiae")


def part_cats() -> list[Row]:
    """Another size."""
    return _phantom_part("femur", "cat", "cats")


def part_cost() -> list[Row]:
    """Time and memory in a fresh process that has seen a bone before (compiled code is kept)."""
    bones = real_femora("smir_right_femora")
    shapes, faces, ok = corresponding("smir24", bones[:KNOWN], "femur")
    model = CACHE / "cost.safetensors"
    learn(bones[:KNOWN], shapes, faces, ok, "femur").save(model)
    folder = CACHE / "cost-films"
    folder.mkdir(exist_ok=True)
    rows = []
    for preset in ("ideal", "clinic"):
        films(bones[KNOWN], preset, SEED, keep=folder)
        for method in ("statistical", "refined"):
            done = subprocess.run(
                [sys.executable, __file__, "--child", str(model), str(folder), method],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            told = json.loads(done.stdout.splitlines()[-1])
            rows += [
                row(f"{method}, {preset}: seconds a bone, films read and fitted", told["s"], "s",
                    f"of which reading {np.median(told['read']):.1f} s; median of "
                    f"{len(told['s'])}: {np.median(told['s']):.2f} s"),
                row(f"{method}, {preset}: peak memory of the process", told["gib"], "GiB"),
            ]  # fmt: skip
    return rows


def child(model_path: str, folder: str, method: str) -> None:
    """Reconstruct one pair of films, twice to warm up, then five times on the clock."""
    from osteoprint.xray.film_pair import examine_pair

    model, at = BoneModel.load(Path(model_path)), Path(folder)
    seconds, reading = [], []
    for turn in range(7):
        begun = time.perf_counter()
        pair = examine_pair(at / "AP.png", at / "ML.png")
        read = time.perf_counter() - begun
        reconstruct(model, both(pair), method)  # type: ignore[arg-type]
        if turn >= 2:
            seconds.append(time.perf_counter() - begun)
            reading.append(read)
    print(json.dumps({"s": seconds, "read": reading, "gib": peak_gib()}))


def peak_gib() -> float:
    """The most memory that this program has held, GiB."""
    status = Path("/proc/self/status")
    if status.is_file():
        # What the kernel calls a process's maximum goes on counting from before it became this
        # program: from the benchmark itself.
        line = next(v for v in status.read_text().splitlines() if v.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


PARTS = {
    "femora": part_femora,
    "cost": part_cost,
    "trouble": part_trouble,
    "other": part_other,
    "tibiae": part_tibiae,
    "cats": part_cats,
    "leave-one-out": part_leave_one_out,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--child", nargs=3)
    chosen = parser.parse_args()
    if chosen.child:
        child(*chosen.child)
        return
    CACHE.mkdir(exist_ok=True)
    for name in chosen.parts.split(","):
        begun = time.monotonic()
        rows = PARTS[name]()
        say(name, "took", round(time.monotonic() - begun), "s")
        _write(name, rows)


def _write(part: str, rows: Sequence[Row]) -> None:
    """The result with a part's rows exchanged; rows say of which part and commit they are."""
    kept: list[Row] = json.loads(RESULT.read_text())["rows"] if RESULT.is_file() else []
    fresh = [{"part": part} | r | {"commit": COMMIT} for r in rows]
    kept = [r for r in kept if r.get("part", part) != part] + fresh
    kept.sort(key=lambda r: list(PARTS).index(r["part"]))
    scale = (
        "24 real femora known, 5 unseen, films of 0.3 mm pixels; leave-one-out over 29; another "
        "source of 35; 29 phantom tibiae and 29 cat-sized phantom femora, 24 known"
    )
    write_result("reconstruction", "python benchmarks/reconstruction.py", SEED, scale, kept)


if __name__ == "__main__":
    main()
