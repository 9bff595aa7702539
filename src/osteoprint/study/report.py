"""The report of a study: one page to look at, and the same figures as JSON.

Both files are complete in themselves: the page loads nothing from anywhere.
"""

from __future__ import annotations

import json
import math
import os
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osteoprint import __version__
from osteoprint.errors import InputError
from osteoprint.study.experiment import Progress, StudyBone, quiet
from osteoprint.study.figures import (
    MOST_PORTRAITS,
    bone_hues,
    colour_table,
    contact_sheet,
    flat_maps,
    histogram,
    map_points,
    portraits,
    probe_picture,
)
from osteoprint.study.identification import distances
from osteoprint.study.modes_section import modes_solid
from osteoprint.study.page import page
from osteoprint.study.solids import rebuilt_solids, solids
from osteoprint.study.whole_way import StudyResult

# What the paper reports for 29 cat femora, 24 known and 5 unseen; other bones, other scans.
PAPER = {
    "bones": "29 cat femora, 24 known",
    "known": 24,
    "rms_mm": 0.86,
    "hausdorff_mm": 3.11,
    "rms_relative": 0.0073,
    "hausdorff_relative": 0.0266,
    "better": 2.6,
    "classified": 1.0,
    "triplet_accuracy": 0.999,
    "pair_accuracy": {
        "views up to 4° off, 146–158 keV": 1.0,
        "views up to 4° off": 0.9999,
        "views up to 7° off": 0.9979,
        "views up to 22° off around one axis, 4° around the other": [0.9922, 0.9951],
        "all views": 0.9575,
    },
}
_PACKAGES = ("numpy", "scipy", "numba", "torch", "scikit-learn", "trimesh", "libigl", "xraydb")


def write_report(
    folder: Path, result: StudyResult, *, title: str, progress: Progress = quiet
) -> None:
    """Write ``report.html`` (self-contained) and ``report.json`` into a folder.

    Each file appears whole or not at all, and replaces an earlier one of its name.

    Parameters
    ----------
    folder : made if need be. Raises InputError where it is a file.
    result : from :func:`osteoprint.study.whole_way.run_study`.
    title : what the page is called.
    progress : called with (step, done, of how many).
    """
    if folder.is_file():
        raise InputError(folder, "is a file", "name a folder for the report")
    values = facts(result, title)
    html = page(values, _pictures(result, values, progress))
    folder.mkdir(parents=True, exist_ok=True)
    _write_whole(
        folder / "report.json",
        json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    )
    _write_whole(folder / "report.html", html)


def facts(result: StudyResult, title: str) -> dict[str, Any]:
    """Everything the report says, as plain JSON values: the page's figures come from here."""
    recognition = result.recognition.to_json()
    near = nearest_distances(result.probes.fingerprints, result.gallery.fingerprints)
    strange = nearest_distances(result.unseen_films.fingerprints, result.gallery.fingerprints)
    strangers = strange.min(axis=2)
    wrong = len(recognition["wrong"])
    summary = {
        "known": len(result.experiment.known),
        "unseen": len(result.experiment.unseen),
        "probes": recognition["probes"],
        "named_right": recognition["probes"] - wrong,
        "named_wrong": wrong,
        **{k: recognition[k] for k in ("rank1", "rank1_one_view", "pair_accuracy")},
        **{k: recognition[k] for k in ("equal_error_rate", "eer_ci95", "threshold")},
        **{k: recognition[k] for k in ("cllr", "cllr_min")},
        "unseen_pairs": strangers.size,
        "strangers_rejected": int((strangers > recognition["threshold"]).sum()),
        **result.nearest.summary(),
        "seconds": sum(result.seconds.values()),
    }
    recognition["distances"] = distance_histogram(near)
    recognition["examples"] = examples(near, result)
    values: dict[str, Any] = plain(
        {
            "title": title,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "summary": summary,
            "recognition": recognition,
            "reconstruction": result.nearest.to_json(),
            "rebuilt": None if result.rebuilt is None else result.rebuilt.to_json(),
            "bones": _bones(result),
            "paper": PAPER,
            "settings": asdict(result.settings),
            "network": {
                "trained_for": result.experiment.model.card.loss,
                "figures": result.experiment.model.card.figures,
            },
            "views": _views(result),
            "picture": asdict(result.experiment.frame),
            "machine": machine(),
            "seconds": result.seconds,
        }
    )
    return values


def nearest_distances(
    probes: NDArray[np.float32], gallery: NDArray[np.float32]
) -> NDArray[np.float64]:
    """(A, P, B) distance of every probe to the nearest enrolled view of every known bone."""
    return np.asarray(distances(probes, gallery).min(axis=3))


def distance_histogram(near: NDArray[np.float64]) -> dict[str, Any]:
    """Distances to the right bone and to all others, see :func:`figures.histogram`."""
    own = np.eye(len(near), dtype=bool)[:, None, :]
    same = np.broadcast_to(own, near.shape)
    return histogram(near[same], near[~same])


def examples(
    near: NDArray[np.float64], result: StudyResult, count: int = 6
) -> list[dict[str, Any]]:
    """Probes to be shown: failures first, then the closest call, then an even sample of the rest.

    A probe's margin is how much nearer its own bone is than the nearest other one.
    """
    names = result.experiment.gallery_names
    bones, pairs = near.shape[:2]
    own = near[np.arange(bones), :, np.arange(bones)]
    others = near.copy()
    others[np.arange(bones), :, np.arange(bones)] = np.inf
    margin = (others.min(axis=2) - own).ravel()
    order = np.argsort(margin, kind="stable")
    failed = int((near.argmin(axis=2) != np.arange(bones)[:, None]).sum())
    chosen = [int(p) for p in order[: min(failed, count // 2)]]
    rest = order[failed:]
    for place in np.linspace(0, len(rest) - 1, min(count - len(chosen), len(rest))).astype(int):
        chosen.append(int(rest[place]))
    out = []
    for at in chosen:
        bone, pair = divmod(at, pairs)
        ranked = near[bone, pair].argsort(kind="stable")[:3]
        pose = result.probes.poses[bone][pair]
        out.append(
            {
                "bone": bone,
                "pair": pair,
                "name": names[bone],
                "right": bool(ranked[0] == bone),
                "margin": float(margin[at]),
                "turn_deg": pose.ap.long_deg,
                "energy_kev": pose.energy_kev,
                "top": [
                    {"bone": int(b), "name": names[b], "distance": float(near[bone, pair, b])}
                    for b in ranked
                ],
            }
        )
    return out


def _views(result: StudyResult) -> dict[str, Any]:
    """How the films that were asked about were taken, over all of them."""
    asked = [p for poses in result.probes.poses + result.unseen_films.poses for p in poses]
    films = [film for pose in asked for film in (pose.ap, pose.ml)]
    energies = [p.energy_kev for p in asked]
    return {
        "enrolled": len(result.gallery.poses[0]),
        "most_turned_deg": max(abs(f.long_deg) for f in films),
        "most_tipped_deg": max(abs(f.in_plane_deg) for f in films),
        "lowest_kev": min(energies),
        "highest_kev": max(energies),
    }


def _bones(result: StudyResult) -> list[dict[str, Any]]:
    """One row per bone, the known ones first; the unseen with what was found for them."""
    rows = [_bone(b, known=True) for b in result.experiment.known]
    pieces = zip(result.experiment.unseen, result.nearest.matches, result.alignments, strict=True)
    for bone, match, alignment in pieces:
        shown = alignment.distance.to_json() | {"bone": alignment.chosen}
        rows.append(_bone(bone, known=False) | {"nearest": asdict(match), "shown": shown})
    return rows


def _bone(bone: StudyBone, *, known: bool) -> dict[str, Any]:
    record = bone.record
    return {
        "id": record.id,
        "name": record.name,
        "individual": record.individual,
        "bone": record.bone,
        "side": record.side,
        "length_mm": record.length_mm,
        "known": known,
        "source": record.source,
        "warnings": list(record.warnings),
    }


def machine() -> dict[str, Any]:
    """What the study ran on."""
    import torch

    versions = {"osteoprint": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    """The processor's name; Linux keeps it in a file, others tell when asked."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def plain(value: Any) -> Any:
    """The same as JSON types only; what is not a finite number becomes null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    return str(value)


def _pictures(result: StudyResult, values: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Every picture of the page, as data URIs, and the data its scripts draw from."""
    known, unseen = result.experiment.known, result.experiment.unseen
    step, total = "Drawing the report", 5
    shown = values["recognition"]["examples"]
    probes = [
        probe_picture(known[e["bone"]], result.probes.poses[e["bone"]][e["pair"]]) for e in shown
    ]
    progress(step, 1, total)
    films = [
        probe_picture(bone, poses[0])
        for bone, poses in zip(unseen, result.unseen_films.poses, strict=True)
    ]
    progress(step, 2, total)
    everybody = portraits([*known, *unseen][:MOST_PORTRAITS])
    progress(step, 3, total)
    points = map_points(result)
    chart = {
        "kind": points.kind.tolist(),
        "bone": points.bone.tolist(),
        "labels": points.labels,
        "hues": bone_hues(len(known) + len(unseen)),
        "places": flat_maps(points.fingerprints, result.settings.seed),
        "sheet": contact_sheet(points.pictures),
        "lengths": colour_table("viridis"),
        "names": [b["name"] for b in values["bones"]],
        "mm": [round(b["length_mm"], 1) for b in values["bones"]],
    }
    progress(step, 4, total)
    bodies = solids(result)
    again = rebuilt_solids(result.rebuilt, [bone.surface for bone in unseen])
    bodies["bones"] += again.pop("bones")
    model = None if result.rebuilt is None else modes_solid(result.rebuilt.shapes)
    if model is not None:
        bodies["bones"].append({name: model[name] for name in ("match", "moves")})
    progress(step, 5, total)
    return {
        "probes": probes,
        "films": films,
        "portraits": everybody,
        "stills": bodies.pop("stills"),
        "rebuilt": again,
        "modes": model,
        "top_mm": bodies["top_mm"],
        "colours": bodies["colours"],
        "data": {"map": chart, "solids": bodies},
    }


def _write_whole(path: Path, text: str) -> None:
    """Write beside, then rename: a reader sees the old file or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
