"""Transfer learning: four networks of the literature name bones, each in eight ways.

    python benchmarks/transfer.py [--steps 60] [--bones 29] [--batch 16] [--pretrained]

As in the paper: a new last layer, alone or with all layers trained, SGD or Adam, at two learning
rates; AP and ML side by side. Validated on films kept from the training (a random fifth). With
``--pretrained`` the networks begin with ImageNet weights, which have to be fetched; without, as
committed where they cannot be, a head alone learns on what random layers happen to see. Lines
that are done are kept in ``benchmarks/.cache`` and stand in the result; an interrupted run is gone
on with.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from identification_scene import Row, row, study_bones
from osteoprint.fingerprint.samples import from_bytes, random_pose, render_set
from osteoprint.fingerprint.transfer import TransferSettings, named, train_namers
from osteoprint.study.paper import TRANSFER_PAPER, transfer_ways
from osteoprint.xray.standard import StandardFrame
from reconstruction_scene import CACHE, real_femora
from record import write_result

FILMS, HELD = 40, 8


def main() -> None:
    parser = argparse.ArgumentParser(description="Transfer learning on real femora.")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--bones", type=int, default=29)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pretrained", action="store_true")
    asked = parser.parse_args()
    bones = real_femora("smir_right_femora")[: asked.bones]
    frame = StandardFrame.for_length(max(b.frame.length_mm for b in bones))
    rng = np.random.default_rng(0)
    poses = [[random_pose(rng) for _ in range(FILMS)] for _ in bones]
    pictures = render_set([b.sample for b in study_bones(bones, 0, frame)], poses, frame)
    known, held = pictures[:, HELD:], pictures[:, :HELD]
    truth = np.repeat(np.arange(len(bones)), HELD)
    ways = transfer_ways(asked.steps, asked.batch, every=True, pretrained=asked.pretrained)
    bank = json.dumps([FILMS, HELD, [b.name for b in bones], asdict(frame)])
    kept = {way: _place(way, bank) for way in ways}
    weights = "ImageNet weights" if asked.pretrained else "from scratch: no weights could be had"
    scale = f"{len(bones)} bones × {FILMS} pairs, {asked.steps} steps of {asked.batch}, {weights}"
    command = f"python benchmarks/transfer.py --steps {asked.steps} --bones {asked.bones}"
    command += f" --batch {asked.batch}" + " --pretrained" * asked.pretrained

    def write() -> None:
        rows = [json.loads(kept[way].read_text()) for way in ways if kept[way].is_file()]
        done = f"{len(rows)} of {len(ways)} ways; " if len(rows) < len(ways) else ""
        write_result("transfer", command, 0, done + scale, rows)

    write()
    left = [way for way in ways if not kept[way].is_file()]
    left.sort(key=lambda way: way.trained != "head")  # what is soon done first
    begun = time.perf_counter()
    for way, namer in train_namers(known, left):
        answer = named(namer, from_bytes(held.reshape(-1, *held.shape[2:])))
        spent, begun = time.perf_counter() - begun, time.perf_counter()
        line = row(
            f"{way.backbone}, {way.trained}, {way.optimiser}, rate {way.learning_rate:g}",
            (answer == truth).mean(), "share", n=len(truth),
            paper=TRANSFER_PAPER[way.backbone], seconds=round(spent, 1)
        )  # fmt: skip
        if way.trained == "head":
            line["note"] = "heads learn beside each other: the first line has the time of all"
        _keep(kept[way], line)
        print(line, flush=True)
        write()


def _place(way: TransferSettings, bank: str) -> Path:
    """Where a line is kept: all that it depends on is in the name."""
    said = json.dumps([asdict(way), bank])
    return CACHE / f"transfer-{hashlib.sha256(said.encode()).hexdigest()[:12]}.json"


def _keep(path: Path, line: Row) -> None:
    """A file that is there is a finished one."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(line))
    partial.replace(path)


if __name__ == "__main__":
    main()
