"""How fast an 800 x 400 X-ray is traced on a CPU, beside plastimatch and nanodrr.

    python benchmarks/xray_speed.py            # on a quiet machine

Two volumes: a real femur as the bank keeps it, and 256³ voxels of noise in which nothing can be
skipped. The three take turns in one run; each has its volume in memory and is timed without
reading files (plastimatch by its own clock). One trace gives path lengths of three
materials to us, attenuation at one energy to them: four energies are one trace for us, four
for them. Memory is measured in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from osteoprint.ct.volume import Volume
from osteoprint.xray.camera import Camera, Geometry
from osteoprint.xray.materials import BODY
from osteoprint.xray.projector import path_lengths, prepare
from osteoprint.xray.radiograph import line_integrals
from peers import (
    COLUMNS,
    ROWS,
    Nanodrr,
    Plastimatch,
    attenuation,
    camera_from_front,
    centred,
    geometry_for,
    missing,
)
from record import write_result
from xray_accuracy import femur

ENERGIES = (140.0, 146.0, 152.0, 158.0)
SEED = 0
ROUNDS, SLOW_ROUNDS = 15, 3
# Times are taken from straight ahead, as plastimatch stands, and from askew.
ASKEW_DEG = (11.0, 17.0, 7.0)


def noise() -> Volume:
    """256³ voxels of noise: nothing of it is air, neighbours have nothing in common."""
    rng = np.random.default_rng(SEED)
    grid = rng.integers(-900, 2000, (256, 256, 256)).astype(np.float32)
    return centred(Volume(grid, np.diag([1.0, 1.0, 1.0, 1.0])))


def timed(call: Any, *arguments: Any) -> float:
    begun = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - begun


def volume_rows(name: str, volume: Volume, geometry: Geometry, work: Path) -> list[dict[str, Any]]:
    camera = camera_from_front(geometry)
    askew = turned(camera)
    mu = attenuation(volume, BODY, 70.0)
    plastimatch, nanodrr = Plastimatch(work), Nanodrr()
    plastimatch.prepare(mu, volume)
    nanodrr.prepare(mu, volume)
    del mu
    ready = timed(prepare, volume)
    traced = prepare(volume)
    first = timed(path_lengths, traced, camera)
    lengths = path_lengths(traced, camera)
    line_integrals(lengths, BODY, ENERGIES[0])
    path_lengths(traced, askew)

    def four() -> None:
        lengths = path_lengths(traced, camera)
        for energy in ENERGIES:
            line_integrals(lengths, BODY, energy)

    ours, ours_four, ours_askew, theirs, torchs = [], [], [], [], []
    plastimatch.render(geometry)
    for index in range(ROUNDS):
        ours.append(timed(path_lengths, traced, camera))
        ours_four.append(timed(four))
        ours_askew.append(timed(path_lengths, traced, askew))
        theirs.append(plastimatch.render(geometry)[1])
        if index < SLOW_ROUNDS:
            torchs.append(nanodrr.render(camera)[1])
            say(f"{name}: {ours[-1]:.4f} {ours_four[-1]:.4f} {theirs[-1]:.4f} {torchs[-1]:.2f} s")
    mine, mine_four, mine_askew, plasti, torch_s = (
        float(np.median(each)) for each in (ours, ours_four, ours_askew, theirs, torchs)
    )

    def row(what: str, value: float, unit: str, note: str, n: int = ROUNDS) -> dict[str, Any]:
        return {"what": f"{name}: {what}", "value": round(value, 4), "unit": unit, "n": n,
                "note": note}  # fmt: skip

    spread = f"{min(ours):.4f}-{max(ours):.4f}"
    return [
        row("one trace, three materials", mine, "s", f"median; {spread}"),
        row("one trace, seen askew", mine_askew, "s", "median"),
        row("one trace and four energies", mine_four, "s", "median"),
        row("plastimatch exact, one image", plasti, "s", f"median; fastest {min(theirs):.4f}"),
        row("nanodrr on the CPU, one image", torch_s, "s", "median; 500 samples", SLOW_ROUNDS),
        row("faster than plastimatch, a trace", plasti / mine, "times", "bar 3"),
        row("faster than nanodrr, a trace", torch_s / mine, "times", "bar 40", SLOW_ROUNDS),
        row("faster than plastimatch, an image of four energies", 4 * plasti / mine_four, "times",
            "bar 10"),
        row("faster than nanodrr, an image of four energies", 4 * torch_s / mine_four, "times",
            "bar 150", SLOW_ROUNDS),
        row("making ready, once a volume", ready, "s", "crop and quantise", 1),
        row("first trace along an axis", first, "s", "turns the volume for the axis", 1),
    ]  # fmt: skip


def turned(camera: Camera) -> Camera:
    """The same camera, moved around the middle of the world."""
    from scipy.spatial.transform import Rotation

    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", ASKEW_DEG, degrees=True).as_matrix()
    return Camera(camera.geometry, matrix @ camera.camera_to_world)


def memory_child(side: int, dtype: str) -> None:
    """Print how much more memory is held at the peak than before a scan is made ready."""
    # Compiled code is loaded before the volume comes.
    small = centred(Volume(np.full((40, 40, 40), 100, dtype), np.diag([1.0, 1.0, 1.0, 1.0])))
    camera = camera_from_front(geometry_for(300.0, 150.0))
    path_lengths(prepare(small), camera)
    rng = np.random.default_rng(SEED)
    grid = rng.integers(-900, 2000, (side, side, side), dtype=np.int16).astype(dtype, copy=False)
    volume = centred(Volume(grid, np.diag([1.0, 1.0, 1.0, 1.0])))
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    traced = prepare(volume)
    for each in (camera, turned(camera)):
        lengths = path_lengths(traced, each)
    peak = status("VmHWM")
    print(json.dumps({"more": peak - before, "image": lengths.nbytes / 2**20,
                      "volume": grid.nbytes / 2**20}))  # fmt: skip


def status(name: str) -> float:
    """MiB of a line of /proc/self/status."""
    text = Path("/proc/self/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith(name))
    return float(line.split()[1]) / 1024


def memory_rows() -> list[dict[str, Any]]:
    rows = []
    for side, dtype in ((256, "float32"), (256, "int16"), (512, "int16")):
        done = subprocess.run(
            [sys.executable, __file__, "--memory", str(side), dtype],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        said = json.loads(done.stdout)
        beyond = said["more"] - said["image"]
        say(f"memory {side} {dtype}: {beyond:.0f} MiB beyond volume and image")
        rows.append(
            {"what": f"memory beyond volume and image, {side}³ {dtype}", "value": round(beyond, 1),
             "unit": "MiB", "note": f"bar 100; volume {said['volume']:.0f} MiB, image "
             f"{said['image']:.1f} MiB of three materials"}
        )  # fmt: skip
    return rows


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.memory:
        memory_child(int(chosen.memory[0]), chosen.memory[1])
        return
    if missing():
        raise SystemExit(f"not installed: {', '.join(missing())}")
    bone = femur()
    size = np.array(bone.shape) * bone.spacing_mm
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="speed") as name:
        shape = " × ".join(map(str, bone.shape))
        rows += volume_rows(
            f"femur ({shape})", bone, geometry_for(1.1 * size[1], 0.6 * 1.1 * size[1]), Path(name)
        )
        dense = noise()
        rows += volume_rows("dense 256³", dense, geometry_for(252.2, 252.2), Path(name))
        del dense
    rows += memory_rows()
    path = write_result(
        "xray_speed",
        "python benchmarks/xray_speed.py",
        SEED,
        f"{ROWS} × {COLUMNS} pixels, {ROUNDS} rounds ({SLOW_ROUNDS} of nanodrr), all cores",
        rows,
    )
    say(str(path))


if __name__ == "__main__":
    main()
