"""The same point on every bone: how near, how evenly, how surely, on all real femora.

    python benchmarks/correspondence.py

The template is the mean of 24 femora (``smir_right_femora`` 00-23), refined twice. It is laid
onto these and onto the 40 others, of which it knows nothing, from several poses each: as
stored, and turned and moved at random. Distances are those of ``surface_distance``. Whether
points slide on the surface is judged by landmarks that people set: each is carried to the mean
bone by the correspondence, where all of them should meet.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from scipy.spatial.transform import Rotation

from osteoprint.ct.surface import read_surface
from osteoprint.frames import Side, apply, invert_rigid, rigid
from osteoprint.shape.correspondence import register
from osteoprint.shape.group import correspond
from osteoprint.shape.surface_index import SurfaceIndex, barycentric
from osteoprint.shape.template import Template
from record import real_bones, write_result

SEED = 20
KNOWN = 24
POSES = 3
RMS_BAR_MM, WORST_BAR_MM = 0.25, 2.0
Row = dict[str, Any]


@dataclass(frozen=True)
class Bone:
    """A bone of the folder, where it lies, and whether it is of the template's side."""

    path: Path
    folder: str

    @property
    def mirrored(self) -> bool:
        return self.path.stem.endswith("_L")

    def surface(self) -> trimesh.Trimesh:
        return read_surface(self.path)


def main() -> None:
    bones = [
        Bone(path, folder)
        for folder in ("smir_right_femora", "vsd_femora")
        for path in sorted((real_bones() / folder).glob("*.ply"))
    ]
    template, seconds = known_template(bones[:KNOWN])
    print(f"template of {len(template.vertices)} vertices, {seconds:.0f} s", flush=True)
    measured = [measure(template, bone, number) for number, bone in enumerate(bones)]
    rows = summary(bones, measured, template, seconds)
    rows += landmark_rows(template, bones, [m["vertices"] for m in measured])
    rows += [row for bone, m in zip(bones, measured, strict=True) for row in bone_rows(bone, m)]
    write_result(
        "correspondence",
        "python benchmarks/correspondence.py",
        SEED,
        f"{len(bones)} real femora, each from {POSES} poses; template from {KNOWN} of them",
        rows,
    )


def known_template(bones: list[Bone]) -> tuple[Template, float]:
    """The mean of `bones` as a template, and the seconds it took."""
    begun = time.perf_counter()
    group = correspond([bone.surface() for bone in bones], bone="femur", side=Side.RIGHT)
    return group.template, time.perf_counter() - begun


def measure(template: Template, bone: Bone, number: int) -> dict[str, Any]:
    """One bone from all its poses: figures of the worst of them, vertices of the first."""
    surface = bone.surface()
    rng = np.random.default_rng([SEED, number])
    found, seconds, work = [], [], []
    for turn in range(POSES):
        pose = np.eye(4)
        if turn:
            pose = rigid(Rotation.random(random_state=rng).as_matrix(), rng.normal(0, 300, 3))
        moved = trimesh.Trimesh(apply(pose, surface.vertices), surface.faces, process=False)
        begun, worked = time.perf_counter(), time.process_time()
        result = register(template, moved, mirrored=bone.mirrored, source=bone.path.stem)
        seconds.append(time.perf_counter() - begun)
        work.append(time.process_time() - worked)
        found.append((result, apply(invert_rigid(pose), result.vertices)))
    first = found[0][1]
    results = [result for result, _ in found]
    ways = [(r.distance.estimate_to_truth, r.distance.truth_to_estimate) for r in results]
    drift = [np.sqrt(((v - first) ** 2).sum(axis=1).mean()) for _, v in found[1:]]
    measured = {
        "vertices": first,
        "template to bone": max(a.rms_mm for a, _ in ways),
        "bone to template": max(b.rms_mm for _, b in ways),
        "worst": max(max(a.hausdorff_mm, b.hausdorff_mm) for a, b in ways),
        "folds": max(r.folds for r in results),
        "drift": float(max(drift)),
        "seconds": seconds,
        "work": work,
        "reasons": sorted({reason for r in results for reason in r.reasons}),
    }
    figures = {k: v for k, v in measured.items() if k != "vertices"}
    print(bone.path.stem, figures, flush=True)
    return measured


def summary(
    bones: list[Bone], measured: list[dict[str, Any]], template: Template, seconds: float
) -> list[Row]:
    """What all bones say together."""
    count = len(measured)

    def column(name: str) -> np.ndarray:
        return np.array([m[name] for m in measured])

    rows: list[Row] = []
    for way in ("template to bone", "bone to template"):
        values = column(way)
        missed = int((values > RMS_BAR_MM).sum())
        note = f"bar {RMS_BAR_MM} mm; {missed} of {count} bones above it"
        rows.append(row(f"surface RMS, {way}, mean over bones", values.mean(), "mm", count))
        rows.append(row(f"surface RMS, {way}, worst bone", values.max(), "mm", count, note))
    worst = column("worst")
    above = [f"{b.path.stem} {w:.1f}" for b, w in zip(bones, worst, strict=True)]
    above = [name for name, w in zip(above, worst, strict=True) if w > WORST_BAR_MM]
    note = f"bar {WORST_BAR_MM} mm; above it: {', '.join(above) or 'none'}"
    rows.append(row("worst point, median over bones", np.median(worst), "mm", count))
    rows.append(row("worst point, worst bone", worst.max(), "mm", count, note))
    rows.append(row("folded triangles, all bones and poses", column("folds").sum(), "count", count))
    refused = [m for m in measured if m["reasons"]]
    rows.append(row("bones refused with a reason", len(refused), "count", count))
    drift = column("drift")
    note = "vertices from other starting poses against those from the stored one, RMS"
    rows.append(row("change with the starting pose, median", np.median(drift), "mm", count, note))
    rows.append(row("change with the starting pose, worst", drift.max(), "mm", count, note))
    each = np.concatenate([m["seconds"] for m in measured])
    note = "wall time of one registration, on a machine shared with others"
    rows.append(row("time a bone, median", np.median(each), "s", len(each), note))
    rows.append(row("time a bone, longest", each.max(), "s", len(each), note))
    work = np.concatenate([m["work"] for m in measured])
    note = "processor time of one registration, all threads: does not count who else was there"
    rows.append(row("processor time a bone, median", np.median(work), "s", len(work), note))
    rows.append(row("processor time a bone, longest", work.max(), "s", len(work), note))
    rows.append(row("time for the template, 24 bones", seconds, "s", 1, "three rounds"))
    rows.append(row("vertices of the template", len(template.vertices), "count", 1))
    return rows


def landmark_rows(template: Template, bones: list[Bone], found: list[np.ndarray]) -> list[Row]:
    """How far landmarks scatter on the mean bone, and how far the people who set them did."""
    smir, vsd, spread = [], [], []
    people = json.loads((real_bones() / "vsd_femora" / "landmarks.json").read_text())
    for bone, vertices in zip(bones, found, strict=True):
        if bone.folder == "smir_right_femora":
            text = bone.path.with_suffix(".landmarks.json").read_text()
            marks = np.array([mark["coordinates"] for mark in json.loads(text)])
            smir.append(carried(template, vertices, marks))
        elif bone.path.stem in people:
            raters = people[bone.path.stem].values()
            names = sorted(set.intersection(*(set(r) for r in raters)))
            each = np.array([[np.mean(r[n], axis=0) for n in names] for r in raters])
            vsd.append(carried(template, vertices, each.mean(axis=0)))
            spread.append(((each - each.mean(axis=0)) ** 2).sum(axis=-1))
    rows = []
    for name, marks in (("smir", np.array(smir)), ("vsd", np.array(vsd))):
        scatter = np.sqrt(((marks - marks.mean(axis=0)) ** 2).sum(axis=-1).mean(axis=0))
        what = f"landmarks carried to the mean bone: scatter about their middle, {name}"
        note = f"RMS over bones, mean of {marks.shape[1]} landmarks; includes the setters' own"
        rows.append(row(what, scatter.mean(), "mm", len(marks), note))
    own = np.sqrt(np.array(spread).mean(axis=(0, 1))).mean()
    note = "one person against the mean of five, RMS; what is carried is that mean"
    rows.append(row("landmarks: scatter of those who set them, vsd", own, "mm", len(spread), note))
    return rows


def carried(template: Template, vertices: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """(j, 3) the places on the template that correspond to `marks` on a bone, mm."""
    index = SurfaceIndex.build(trimesh.Trimesh(vertices, template.faces, process=False))
    _, near, faces = index.nearest(marks)
    corners = index.faces[faces]
    weights = barycentric(vertices[corners], near)
    return np.einsum("jc,jcx->jx", weights, template.vertices[corners])


def bone_rows(bone: Bone, m: dict[str, Any]) -> list[Row]:
    """The figures of one bone, each the worst over its starting poses."""
    name = f"{bone.folder}/{bone.path.stem}"
    reasons = "; ".join(m["reasons"])
    return [
        row(f"{name}: RMS, template to bone", m["template to bone"], "mm", POSES),
        row(f"{name}: RMS, bone to template", m["bone to template"], "mm", POSES),
        row(f"{name}: worst point", m["worst"], "mm", POSES, reasons),
        row(f"{name}: folded triangles", m["folds"], "count", POSES),
        row(f"{name}: time, median", np.median(m["seconds"]), "s", POSES),
    ]


def row(what: str, value: float, unit: str, n: int, note: str = "") -> Row:
    """One row of the result."""
    made: Row = {"what": what, "value": round(float(value), 4), "unit": unit, "n": n}
    return made | ({"note": note} if note else {})


if __name__ == "__main__":
    main()
