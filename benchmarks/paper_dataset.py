"""The paper's data set: 900 pairs of pictures of each of 29 femora.

    python benchmarks/paper_dataset.py            # all 29 bones, then how time grows
    python benchmarks/paper_dataset.py --bones 2 --protocol quick

Ingests the real femora into a bank of its own, renders with the command a user types, and
watches the memory of all its processes. Then the same on fewer bones, views, pixels and
workers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from osteoprint.bank.store import Bank
from osteoprint.study.dataset import subjects_of
from osteoprint.xray.dataset import Setup, measure_scale, render_turn
from osteoprint.xray.protocol import PAPER, film_geometry
from record import real_bones, write_result

PROGRAM = Path(sys.executable).with_name("osteoprint")
# The paper's protocol, cut to a few turns for the comparisons.
TURNS = 4


@dataclass(frozen=True)
class Run:
    """A command's answer, its wall-clock time and the peak memory of all its processes."""

    answer: dict[str, Any]
    seconds: float
    peak_gb: float


def resident_gb(pid: int) -> float:
    """Memory that a process and its children hold by themselves (PSS: shared pages split)."""
    total = 0.0
    for each in [pid, *children(pid)]:
        try:
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(float(line.split()[1]) for line in text.splitlines() if line[:4] == "Pss:")
    return total / 1e6


def children(pid: int) -> list[int]:
    out = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = [int(each) for each in path.read_text().split()]
        except OSError:
            continue
        for each in found:
            out += [each, *children(each)]
    return out


def run(*arguments: str) -> Run:
    """Run a command with --json, and watch it."""
    begun = time.perf_counter()
    peak = 0.0
    with subprocess.Popen(
        [str(PROGRAM), *arguments, "--json"], stdout=subprocess.PIPE, text=True
    ) as process:
        ended = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not ended.wait(0.5):
                peak = max(peak, resident_gb(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        out, _ = process.communicate()
        ended.set()
        watcher.join()
    if process.returncode:
        raise SystemExit(f"{arguments[0]} ended with {process.returncode}")
    return Run(json.loads(out.splitlines()[-1]), time.perf_counter() - begun, peak)


def ingest(work: Path, count: int) -> Path:
    bank = work / f"bank{count}"
    femora = sorted((real_bones() / "smir_right_femora").glob("*.ply"))[:count]
    run("ingest", *map(str, femora), "--bank", str(bank))
    return bank


def growth_rows(work: Path, bank: Path) -> list[dict[str, Any]]:
    """Seconds of one core for parts of the work on one bone."""
    import numba

    numba.set_num_threads(1)
    with Bank.open(bank) as opened:
        subject = subjects_of(opened)[0]
    longest = film_geometry(subject.length_mm).spacing_at_bone_mm[0]
    setup = Setup(PAPER, longest, 2.0)
    scales = measure_scale(subject, setup)
    render_turn(subject, setup, scales, 3.0, str(work / "warm"))
    rows = []

    def timed(what: str, changed: Setup, turns: int) -> None:
        folder = work / f"growth {what}"
        scaled = measure_scale(subject, changed)
        begun = time.perf_counter()
        made = sum(
            render_turn(subject, changed, scaled, turn, str(folder))["made"]
            for turn in PAPER.long_deg[:turns]
        )
        seconds = time.perf_counter() - begun
        say(f"{what}: {seconds:.2f} s for {made}")
        rows.append(
            {
                "what": f"one bone, one core: {what}",
                "value": round(seconds, 2),
                "unit": "s",
                "n": made,
                "note": f"{1e3 * seconds / made:.1f} ms a picture",
            }
        )

    for turns in (1, 2, TURNS):
        timed(f"{turns} turns of 60 pictures", setup, turns)
    for energies in (1, 2, 4):
        fewer = replace(PAPER, energy_kev=PAPER.energy_kev[:energies])
        timed(f"15 poses with {energies} energies each", replace(setup, protocol=fewer), 1)
    for rows_px in (200, 400, 800, 1600):
        size = replace(
            setup, rows=rows_px, columns=rows_px // 2, mm_per_pixel=longest * 800 / rows_px
        )
        timed(f"60 pictures of {rows_px} × {rows_px} pixels", size, 1)
    return rows


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bones", type=int, default=29)
    parser.add_argument("--protocol", default="paper", choices=["paper", "quick"])
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="paper") as name:
        work = Path(name)
        bank = ingest(work, chosen.bones)
        full = run(
            "render", "--bank", str(bank), "--out", str(work / "out"), "--protocol",
            chosen.protocol,
        )  # fmt: skip
        pictures = full.answer["pairs"]
        size = sum(path.stat().st_size for path in (work / "out").rglob("*.png"))
        note = f"{1e3 * full.seconds / pictures:.1f} ms a picture"
        rows += [
            {"what": f"{pictures} pictures of {chosen.bones} femora, one process a core",
             "value": round(full.seconds, 1), "unit": "s", "n": pictures,
             "note": f"bar 1200 s for 26,100; {note}"},
            {"what": "peak memory of all processes", "value": round(full.peak_gb, 2),
             "unit": "GB", "note": "bar 4 GB; proportional set size, sampled twice a second"},
            {"what": "size of the set", "value": round(size / 1e9, 3), "unit": "GB"},
            {"what": "scale object, largest error of its measurement",
             "value": round(full.answer["scale_error"], 5), "unit": "relative",
             "n": 2 * chosen.bones, "note": "10 mm drawn into each scan; aim 0.01"},
        ]  # fmt: skip
        say(f"{pictures} in {full.seconds:.0f} s, {full.peak_gb:.2f} GB")
        again = run(
            "render", "--bank", str(bank), "--out", str(work / "out"), "--protocol",
            chosen.protocol,
        )  # fmt: skip
        rows.append(
            {"what": "the same command again", "value": round(again.seconds, 1), "unit": "s",
             "note": f"{again.answer['made_now']} pictures made"}
        )  # fmt: skip
        for bones in (n for n in (1, 2, 4) if n < chosen.bones):
            some = ingest(work, bones)
            for workers in (1, 2):
                out = work / f"out{bones}_{workers}"
                timed = run(
                    "render", "--bank", str(some), "--out", str(out), "--protocol",
                    chosen.protocol, "--workers", str(workers),
                )  # fmt: skip
                say(f"{bones} bones, {workers} workers: {timed.seconds:.1f} s")
                rows.append(
                    {"what": f"{timed.answer['pairs']} pictures of {bones} femora, "
                     f"{workers} workers", "value": round(timed.seconds, 1), "unit": "s",
                     "n": timed.answer["pairs"], "note": "start of the program included"}
                )  # fmt: skip
        rows += growth_rows(work, bank)
    path = write_result(
        "paper_dataset",
        "python benchmarks/paper_dataset.py",
        0,
        f"{chosen.bones} femora, protocol {chosen.protocol}; nothing is drawn by chance",
        rows,
    )
    say(str(path))


if __name__ == "__main__":
    main()
