"""What matters to the network, on real femora: ``osteoprint study ablation``, as a benchmark.

    python benchmarks/ablation.py [--scale small] [--seeds 2] [--accelerator auto]

24 femora of ``smir_right_femora`` are known, five never seen; plain films, as the paper's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import asdict, replace

import torch

from identification_scene import KNOWN, Row, row, study_bones
from osteoprint.study.ablation import BASE, SCALES, Line, affordable_scale, cases, run_ablation
from osteoprint.study.ablation_page import table
from osteoprint.xray.standard import StandardFrame
from reconstruction_scene import CACHE, real_femora
from record import write_result


def main() -> None:
    parser = argparse.ArgumentParser(description="Ablation on real femora.")
    parser.add_argument("--scale", choices=list(SCALES), default="small")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--accelerator", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--steps", type=int, help="Instead of as many as the scale has.")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--at-once", type=int, default=1, help="Networks trained at a time.")
    parser.add_argument("--only", nargs="+", help="Lines whose names begin like these.")
    asked = parser.parse_args()
    bones = real_femora("smir_right_femora")
    frame = StandardFrame.for_length(max(b.frame.length_mm for b in bones[:KNOWN]))
    scale = affordable_scale(SCALES[asked.scale])
    settings = replace(scale.settings, precision=asked.precision)
    scale = replace(scale, settings=replace(settings, steps=asked.steps or settings.steps))

    def progress(what: str, done: float, total: float) -> None:
        print(f"{what}: {done:g} of {total:g}", flush=True)

    said = json.dumps([scale.films, asdict(frame), [b.name for b in bones]])
    films = CACHE / f"ablation-{hashlib.sha256(said.encode()).hexdigest()[:12]}"
    only = None
    if asked.only:
        only = [c.name for c in cases(scale) if c is BASE or c.name.startswith(tuple(asked.only))]

    def keep(lines: list[Line]) -> None:
        name = "ablation" if asked.scale == "small" else "ablation-full"
        name += "-part" if asked.only else ""
        command = "python benchmarks/ablation.py " + " ".join(sys.argv[1:])
        scaled = f"24 known and 5 unseen femora; {scale.words}; on {device(asked.accelerator)}"
        write_result(name, command, 0, scaled, rows_of(lines))

    run_ablation(
        study_bones(bones, 0, frame), scale, unseen=tuple(b.name for b in bones[KNOWN:]),
        seeds=range(asked.seeds), accelerator=asked.accelerator, at_once=asked.at_once,
        films_folder=films, progress=progress, only=only, keep=keep,
    )  # fmt: skip


def rows_of(lines: list[Line]) -> list[Row]:
    rows: list[Row] = []
    for line in table(lines):
        more = {"n": line["seeds"], "spread": round(line["spread"], 3)}
        if line["paper"] is not None:
            more["paper change"] = line["paper"]
        if line["case"] != BASE.name and line["change"] is not None:
            more["change"] = round(line["change"], 3)
        name = line["case"]
        rows += [
            row(f"{name}: triplet accuracy, other films of known bones", line["validation"], "%",
                **more),
            row(f"{name}: triplet accuracy, bones never seen", line["unseen"], "%"),
            row(f"{name}: pairs of bones never seen told right", line["pairs"], "%"),
        ]  # fmt: skip
        seconds = [each.seconds for each in lines if each.case.name == name]
        rows.append(row(f"{name}: time of a training", max(seconds) / 60, "min", n=len(seconds)))
    return rows


def device(accelerator: str) -> str:
    if accelerator == "cpu" or not torch.cuda.is_available():
        return "CPU"
    return str(torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
