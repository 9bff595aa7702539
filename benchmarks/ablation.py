"""What matters to the network, on real femora: ``osteoprint study ablation``, as a benchmark.

    python benchmarks/ablation.py [--scale small] [--seeds 2] [--accelerator auto]

24 femora of ``smir_right_femora`` are known, five never seen; plain films, as the paper's.
"""

from __future__ import annotations

import argparse
import time

import torch

from identification_scene import KNOWN, Row, row, study_bones
from osteoprint.study.ablation import BASE, SCALES, Line, affordable_scale, cases, run_ablation
from osteoprint.study.ablation_page import table
from osteoprint.xray.standard import StandardFrame
from reconstruction_scene import real_femora
from record import write_result


def main() -> None:
    parser = argparse.ArgumentParser(description="Ablation on real femora.")
    parser.add_argument("--scale", choices=list(SCALES), default="small")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--accelerator", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--only", nargs="+", help="Lines whose names begin like these.")
    asked = parser.parse_args()
    bones = real_femora("smir_right_femora")
    frame = StandardFrame.for_length(max(b.frame.length_mm for b in bones[:KNOWN]))
    scale = affordable_scale(SCALES[asked.scale])

    def progress(what: str, done: float, total: float) -> None:
        print(f"{what}: {done:g} of {total:g}", flush=True)

    only = None
    if asked.only:
        only = [c.name for c in cases(scale) if c is BASE or c.name.startswith(tuple(asked.only))]
    begun = time.perf_counter()

    def keep(lines: list[Line]) -> None:
        seconds = (time.perf_counter() - begun) / len(lines)
        name = "ablation" if asked.scale == "small" else "ablation-full"
        name += "-part" if asked.only else ""
        command = f"python benchmarks/ablation.py --scale {asked.scale} --seeds {asked.seeds}"
        scaled = f"24 known and 5 unseen femora; {scale.name}; on {device(asked.accelerator)}"
        write_result(name, command, 0, scaled, rows_of(lines, seconds))

    run_ablation(
        study_bones(bones, 0, frame), scale, unseen=tuple(b.name for b in bones[KNOWN:]),
        seeds=range(asked.seeds), accelerator=asked.accelerator, progress=progress, only=only,
        keep=keep,
    )  # fmt: skip


def rows_of(lines: list[Line], seconds: float) -> list[Row]:
    rows: list[Row] = []
    for line in table(lines):
        more = {"n": line["seeds"], "spread": round(line["spread"], 3)}
        if line["paper"] is not None:
            more["paper change"] = line["paper"]
        if line["case"] != BASE.name:
            more["change"] = round(line["change"], 3)
        name = line["case"]
        rows += [
            row(f"{name}: triplet accuracy, other films of known bones", line["validation"], "%",
                **more),
            row(f"{name}: triplet accuracy, bones never seen", line["unseen"], "%"),
            row(f"{name}: pairs of bones never seen told right", line["pairs"], "%"),
        ]  # fmt: skip
    rows.append(row("time a network, films shared among all", seconds / 60, "min", n=len(lines)))
    return rows


def device(accelerator: str) -> str:
    if accelerator == "cpu" or not torch.cuda.is_available():
        return "CPU"
    return str(torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
