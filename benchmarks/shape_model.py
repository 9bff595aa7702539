"""What a shape model of 24 femora can say: of itself, and of five femora it has never seen.

    python benchmarks/shape_model.py

Template, correspondence and model are made from ``smir_right_femora`` 00-23 alone; 24-28 are
unseen. Compactness, generality and specificity after Davies et al. (2002), between
corresponding vertices. Of an unseen bone: its registered vertices are brought to the nearest
shape of the model, this is aligned to the bone's own surface, and the distance between the
two *surfaces* is measured both ways. Writes ``docs/pictures/shape_model.png`` besides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import trimesh

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection

from osteoprint.ct.surface import read_surface
from osteoprint.frames import Side, apply, invert_rigid
from osteoprint.shape.alignment import align_rigid
from osteoprint.shape.correspondence import register
from osteoprint.shape.distance import surface_distance
from osteoprint.shape.group import Group, correspond
from osteoprint.shape.model_quality import compactness, generality, specificity, unexplained
from osteoprint.shape.ssm import ShapeModel, smooth_basis
from osteoprint.shape.surface_index import SurfaceIndex
from record import ROOT, real_bones, write_result

SEED = 0
KNOWN = 24
PICTURE = ROOT / "docs" / "pictures" / "shape_model.png"
SAMPLES = 200
SMOOTH = 80
COLOURS = matplotlib.colormaps["YlOrRd"]
Row = dict[str, Any]


def main() -> None:
    paths = sorted((real_bones() / "smir_right_femora").glob("*.ply"))
    surfaces = [read_surface(path) for path in paths]
    names = [path.stem for path in paths]
    group = correspond(surfaces[:KNOWN], sources=names[:KNOWN], bone="femur", side=Side.RIGHT)
    unseen = [
        register(group.template, surface, source=name)
        for surface, name in zip(surfaces[KNOWN:], names[KNOWN:], strict=True)
    ]
    if not all(member.ok for member in (*group.members, *unseen)):
        raise SystemExit("a femur could not be registered: see benchmarks/correspondence.py")
    model = ShapeModel.build(group.shapes, group.template.faces, bone="femur", side=Side.RIGHT)
    counts = list(range(len(model.modes) + 1))
    left_out = counts[:-1]
    curves = {
        "compactness": compactness(model),
        "generality": generality(group.shapes, model.faces, left_out),
        "specificity": specificity(model, group.shapes, counts, samples=SAMPLES, seed=SEED),
        "unseen": np.stack([unexplained(model, m.vertices, counts) for m in unseen]),
    }
    print("curves done", flush=True)
    tried = (0, 5, 10, 15, 20, len(model.modes))
    truths = [SurfaceIndex.build(surface, "bone") for surface in surfaces[KNOWN:]]
    surface_mm = np.array(
        [
            [best_said(model.truncated(k), m.vertices, truth) for k in tried]
            for m, truth in zip(unseen, truths, strict=True)
        ]
    )
    beyond = np.array(
        [best_beyond(model, m.vertices, truth) for m, truth in zip(unseen, truths, strict=True)]
    )
    curves["tried"], curves["surface"] = np.array(tried), surface_mm
    draw(model, curves, PICTURE)
    rows = model_rows(group, model, curves) + unseen_rows(tried, surface_mm, beyond)
    scale = f"{KNOWN} real femora known, {len(unseen)} unseen; {len(model.mean)} vertices"
    write_result("shape_model", "python benchmarks/shape_model.py", SEED, scale, rows)


def best_said(model: ShapeModel, vertices: np.ndarray, truth: SurfaceIndex) -> float:
    """Symmetric surface RMS, mm, from a bone to the model's nearest shape, rigidly aligned."""
    pose, values = model.fitted(vertices)
    return aligned_rms(model.instance(values), model.faces, pose, truth)


def best_beyond(model: ShapeModel, vertices: np.ndarray, truth: SurfaceIndex) -> float:
    """The same with the smoothest functions of the mean, for what the modes leave."""
    pose, values = model.fitted(vertices)
    said = model.instance(values)
    _, functions = smooth_basis(model.mean, model.faces, SMOOTH)
    left = apply(pose, vertices) - said
    said = said + functions @ np.linalg.lstsq(functions, left, rcond=None)[0]
    return aligned_rms(said, model.faces, pose, truth)


def aligned_rms(
    shape: np.ndarray, faces: np.ndarray, pose: np.ndarray, truth: SurfaceIndex
) -> float:
    """Symmetric surface RMS, mm, of a shape in the model's frame, its pose on the bone refined."""
    mesh = trimesh.Trimesh(shape, faces, process=False)
    start = align_rigid(mesh, truth, start=invert_rigid(pose))
    return surface_distance(mesh.apply_transform(start), truth).rms_mm


def model_rows(group: Group, model: ShapeModel, curves: dict[str, np.ndarray]) -> list[Row]:
    """Compactness, generality, specificity, at chosen numbers of modes."""
    rows = [
        row("vertices", len(model.mean), "count", 1),
        row("modes", len(model.modes), "count", 1),
    ]
    own = [member.distance.rms_mm for member in group.members]
    note = "what the correspondence itself leaves: the floor of everything below"
    rows.append(row("registered template to bone, surface RMS", np.mean(own), "mm", KNOWN, note))
    held = curves["compactness"]
    for share in (0.9, 0.95, 0.99):
        needed = int(np.searchsorted(held, share)) + 1
        rows.append(
            row(f"compactness: modes that hold {share:.0%} of variance", needed, "count", 1)
        )
    for count in (1, 2, 5, 10, 20):
        rows.append(row(f"compactness: variance in {count} modes", held[count - 1], "ratio", KNOWN))
    for count in (0, 1, 5, 10, 15, 20, curves["generality"].shape[1] - 1):
        values = curves["generality"][:, count]
        what = f"generality: each bone left out, {count} modes, vertex RMS"
        rows.append(row(what, values.mean(), "mm", KNOWN, f"worst bone {values.max():.2f}"))
    for count in (1, 5, 10, 20, len(model.modes)):
        values = curves["specificity"][:, count]
        what = f"specificity: drawn shapes to the nearest real one, {count} modes, vertex RMS"
        rows.append(row(what, values.mean(), "mm", SAMPLES))
    return rows


def unseen_rows(tried: tuple[int, ...], surface: np.ndarray, beyond: np.ndarray) -> list[Row]:
    """What the model says best of bones it has never seen."""
    rows = []
    for column, count in enumerate(tried):
        values = surface[:, column]
        note = "bones " + ", ".join(f"{v:.2f}" for v in values)
        rows.append(row(f"unseen bones, {count} modes, surface RMS", values.mean(), "mm", 5, note))
    note = f"the first {SMOOTH} Laplace-Beltrami functions of the mean, each axis, least squares"
    what = f"unseen bones, {tried[-1]} modes and {SMOOTH} smooth functions, surface RMS"
    rows.append(row(what, beyond.mean(), "mm", len(beyond), note))
    return rows


def row(what: str, value: float, unit: str, n: int, note: str = "") -> Row:
    """One row of the result."""
    made: Row = {"what": what, "value": round(float(value), 4), "unit": unit, "n": n}
    return made | ({"note": note} if note else {})


def draw(model: ShapeModel, curves: dict[str, np.ndarray], path: Path) -> None:
    """The curves above, the first modes below."""
    figure = plt.figure(figsize=(13, 12), dpi=110, facecolor="white")
    grid = figure.add_gridspec(3, 8, height_ratios=[1.0, 2.3, 0.04], hspace=0.28, wspace=0.9)
    _draw_compactness(figure.add_subplot(grid[0, 0:2]), curves)
    _draw_errors(figure.add_subplot(grid[0, 2:5]), curves)
    _draw_surface(figure.add_subplot(grid[0, 5:8]), curves)
    inner = grid[1, :].subgridspec(1, 4, wspace=0.02)
    for mode in range(4):
        _draw_mode(figure.add_subplot(inner[0, mode]), model, mode)
    bar = figure.colorbar(
        ScalarMappable(cmap=COLOURS), cax=figure.add_subplot(grid[2, 2:6]), orientation="horizontal"
    )
    bar.set_ticks([0, 1], labels=["rests", "moves most"])
    bar.set_label("the mean, coloured by how far its surface moves; dotted -2, solid +2 SD")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def _draw_compactness(axes: Axes, curves: dict[str, np.ndarray]) -> None:
    held = curves["compactness"]
    axes.plot(np.arange(1, len(held) + 1), 100 * held, "o-", ms=3, color="#1f4e79")
    axes.set(xlabel="modes", ylabel="variance held (%)", title="Compactness", ylim=(88, 100.5))
    axes.grid(alpha=0.3)


def _draw_errors(axes: Axes, curves: dict[str, np.ndarray]) -> None:
    for name, label, colour in (
        ("generality", "generality: bone left out", "#1f4e79"),
        ("unseen", "five unseen bones", "#c0504d"),
        ("specificity", "specificity: drawn shape to nearest bone", "#6a8f3c"),
    ):
        values = curves[name][:, 1:]
        at = np.arange(1, values.shape[1] + 1)
        mean = values.mean(axis=0)
        axes.plot(at, mean, "-", color=colour, label=label)
        low, high = np.percentile(values, [10, 90], axis=0)
        axes.fill_between(at, low, high, color=colour, alpha=0.13, lw=0)
    axes.set(xlabel="modes", ylabel="vertex RMS (mm)", title="Between corresponding vertices")
    axes.set_ylim(0, None)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7.5, frameon=False)


def _draw_surface(axes: Axes, curves: dict[str, np.ndarray]) -> None:
    tried, values = curves["tried"], curves["surface"]
    for line in values:
        axes.plot(tried, line, color="#c0504d", alpha=0.3, lw=1)
    axes.plot(tried, values.mean(axis=0), "o-", color="#c0504d", label="mean of five")
    axes.set(xlabel="modes", ylabel="surface RMS (mm)", title="The model's best of an unseen bone")
    axes.set_yscale("log")
    axes.set_yticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
    axes.minorticks_off()
    axes.annotate(
        f"{values[:, -1].mean():.2f}",
        (tried[-1], values[:, -1].mean()),
        (-4, -14),
        textcoords="offset points",
        ha="center",
        color="#c0504d",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)


def _motion(model: ShapeModel, mode: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3) motion for one standard deviation, mm, and (n,) how much of it is not sliding."""
    motion = model.deviations[mode] * model.modes[mode]
    return motion, np.abs((motion * model.mesh.vertex_normals).sum(axis=1))


def _draw_mode(axes: Axes, model: ShapeModel, mode: int) -> None:
    """Front and outer side of the mean coloured by the mode, between both its extremes."""
    motion, amount = _motion(model, mode)
    width = 130.0
    for column, across in enumerate((1, 2)):
        depth = 2 if across == 1 else 1
        nearer = 1.0 if across == 1 else -1.0
        middle = column * width
        for sign, style in ((-2, ":"), (2, "-")):
            shape = model.mean + sign * motion
            for outline in _outline(shape, model.faces, across, depth):
                axes.plot(middle + outline[:, 0], outline[:, 1], style, color="black", lw=0.8)
        corners = model.mean[model.faces]
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        seen = nearer * normals[:, depth] > 0
        order = np.argsort(nearer * corners[seen][:, :, depth].mean(axis=1))
        flat = corners[seen][order][:, :, [across, 0]] + [middle, 0]
        light = 0.6 + 0.4 * nearer * normals[seen][order, depth] / np.linalg.norm(
            normals[seen][order], axis=1
        )
        value = amount[model.faces[seen][order]].mean(axis=1) / amount.max()
        colours = COLOURS(value)
        colours[:, :3] *= np.clip(light, 0, 1)[:, None]
        axes.add_collection(
            PolyCollection(list(flat), facecolors=colours, edgecolors=colours, lw=0.3)
        )
        label = "front" if across == 1 else "side"
        axes.text(middle, model.mean[:, 0].min() - 45, label, ha="center", fontsize=9)
    share = model.deviations[mode] ** 2 / (model.deviations**2).sum()
    title = f"mode {mode + 1}: {share:.1%} of variance\nup to {amount.max():.1f} mm a SD"
    axes.set_title(title, fontsize=10)
    low, high = model.mean[:, 0].min(), model.mean[:, 0].max()
    axes.set(xlim=(-0.55 * width, 1.55 * width), ylim=(low - 50, high + 35))
    axes.set_aspect("equal")
    axes.axis("off")


def _outline(shape: np.ndarray, faces: np.ndarray, across: int, depth: int) -> list[np.ndarray]:
    """(j, 2) pieces of the outline of a shape seen along axis `depth`."""
    corners = shape[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    mesh = trimesh.Trimesh(shape, faces, process=False)
    facing = normals[:, depth] > 0
    pairs = mesh.face_adjacency
    rim = mesh.face_adjacency_edges[facing[pairs[:, 0]] != facing[pairs[:, 1]]]
    return [shape[edge][:, [across, 0]] for edge in rim]


if __name__ == "__main__":
    main()
