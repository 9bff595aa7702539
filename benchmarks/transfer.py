"""Transfer learning: four networks of the literature name bones, each in eight ways.

    python benchmarks/transfer.py [--steps 100] [--bones 12] [--batch 8] [--pretrained]

As in the paper: a new last layer, alone or with all layers trained, SGD or Adam, at two learning
rates; AP and ML side by side. Validated on films kept from the training (a random fifth). With
``--pretrained`` the networks begin with ImageNet weights, which have to be fetched; without, a head
alone learns on what random layers happen to see. The result is written after every line; a run
that was interrupted goes on from it, and each line says of which commit and machine it is. A result
that was measured otherwise, or is to be measured once more, is left alone without ``--anew``.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from identification_scene import Row, row, study_bones
from osteoprint.fingerprint.samples import from_bytes, random_pose, render_set
from osteoprint.fingerprint.transfer import TransferSettings, named, train_namers
from osteoprint.study.paper import TRANSFER_PAPER, transfer_ways
from osteoprint.xray.standard import StandardFrame
from reconstruction_scene import real_femora
from record import RESULTS, commit, machine, write_result

FILMS, HELD = 40, 8


def main() -> None:
    parser = argparse.ArgumentParser(description="Transfer learning on real femora.")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--bones", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pretrained", action="store_true")
    parser.add_argument("--anew", action="store_true", help="Replace the result that is there.")
    asked = parser.parse_args()
    weights = "ImageNet weights" if asked.pretrained else "from scratch"
    scale = f"{asked.bones} bones × {FILMS} pairs, {asked.steps} steps of {asked.batch}, {weights}"
    command = f"python benchmarks/transfer.py --steps {asked.steps} --bones {asked.bones}"
    command += f" --batch {asked.batch}" + " --pretrained" * asked.pretrained
    rows = {} if asked.anew else _rows_of(command, scale)
    bones = real_femora("smir_right_femora")[: asked.bones]
    if len(bones) < asked.bones:
        raise SystemExit(f"--bones: there are {len(bones)}")
    frame = StandardFrame.for_length(max(b.frame.length_mm for b in bones))
    rng = np.random.default_rng(0)
    poses = [[random_pose(rng) for _ in range(FILMS)] for _ in bones]
    pictures = render_set([b.sample for b in study_bones(bones, 0, frame)], poses, frame)
    known, held = pictures[:, HELD:], pictures[:, :HELD]
    truth = np.repeat(np.arange(len(bones)), HELD)
    ways = transfer_ways(asked.steps, asked.batch, every=True, pretrained=asked.pretrained)
    left = [way for way in ways if _name(way) not in rows]
    left.sort(key=lambda way: way.trained != "head")  # what is soon done first
    begun = time.perf_counter()
    for way, namer in train_namers(known, left):
        answer = named(namer, from_bytes(held.reshape(-1, *held.shape[2:])))
        spent, begun = time.perf_counter() - begun, time.perf_counter()
        line = row(_name(way), (answer == truth).mean(), "share", n=len(truth),
                   paper=TRANSFER_PAPER[way.backbone], seconds=round(spent, 1),
                   commit=commit(), cpu=machine()["cpu"])  # fmt: skip
        if way.trained == "head":
            line["note"] = "heads learn beside each other: the first that is done has the time"
        rows[line["what"]] = line
        print(line, flush=True)
        done = [rows[_name(way)] for way in ways if _name(way) in rows]
        part = f"{len(done)} of {len(ways)} ways; " if len(done) < len(ways) else ""
        write_result("transfer", command, 0, part + scale, done)


def _name(way: TransferSettings) -> str:
    return f"{way.backbone}, {way.trained}, {way.optimiser}, rate {way.learning_rate:g}"


def _rows_of(command: str, scale: str) -> dict[str, Row]:
    """The lines of an unfinished result of this command, by name; ends the run at any other."""
    path = RESULTS / "transfer.json"
    if not path.is_file():
        return {}
    said = json.loads(path.read_text())
    if said["command"] != command or said["scale"].split(" ways; ")[-1] != scale:
        known = f"'{said['command']}', {said['scale']}"
        raise SystemExit(f"{path} is of {known}: give that, or --anew to replace it")
    if " ways; " not in said["scale"]:
        raise SystemExit(f"{path} is whole: give --anew to measure it once more")
    return {line["what"]: line for line in said["rows"]}


if __name__ == "__main__":
    main()
