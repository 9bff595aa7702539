"""Kill a rendering at random moments, go on, and compare every bit at the end.

    python benchmarks/resume.py                # 20 kills
    python benchmarks/resume.py --kills 5

A bank of phantoms is rendered once undisturbed. Then again into another folder, killed
(SIGKILL, with its workers) at a random moment, called again, killed again; between the kills the
folder is looked at: what a turn's record or a bone's manifest named must not be made anew.
At the end all files must be the undisturbed ones, bit for bit, and no others be there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from osteoprint.bank.store import Bank
from osteoprint.study.demo import make_phantoms
from record import write_result

PROGRAM = Path(sys.executable).with_name("osteoprint")
SEED = 0


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, with its SHA-256."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def finished(folder: Path) -> dict[Path, int]:
    """Pictures that a record or a manifest names, with the time at which each was written."""
    out = {}
    for record in [*folder.glob("*/unfinished/z*.json"), *folder.glob("*/manifest.json")]:
        place = record.parent.parent if record.parent.name == "unfinished" else record.parent
        for row in json.loads(record.read_text())["pairs"]:
            path = place / row["file"]
            out[path] = path.stat().st_mtime_ns
    return out


def begin(bank: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
    """Start rendering, in a process group of its own."""
    return subprocess.Popen(
        [str(PROGRAM), "render", "--bank", str(bank), "--out", str(out), "--protocol", "paper",
         "--workers", str(workers), "--shards", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--bones", type=int, default=3)
    chosen = parser.parse_args()
    rng = random.Random(SEED)
    with tempfile.TemporaryDirectory(prefix="resume") as name:
        work = Path(name)
        with Bank.open(work / "bank", create=True) as bank:
            make_phantoms(bank, [f"cat {n}" for n in range(chosen.bones)], 3, size="cat")
        begun = time.perf_counter()
        begin(work / "bank", work / "whole", 2).communicate()
        whole_s = time.perf_counter() - begun
        wanted = contents(work / "whole")
        say(f"undisturbed: {whole_s:.1f} s, {len(wanted)} files")
        kills = renewed = kept = sets = 0
        wrong: list[str] = []
        moments: list[int] = []
        while kills < chosen.kills:
            out = work / f"out{sets}"
            sets += 1
            while kills < chosen.kills:
                before = finished(out) if out.is_dir() else {}
                process = begin(work / "bank", out, rng.choice([1, 2]))
                try:
                    # Some of this goes by before anything is made: those kills count too.
                    process.communicate(timeout=rng.uniform(0.15, 0.7) * whole_s)
                    break
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.communicate()
                kills += 1
                after = finished(out) if out.is_dir() else {}
                renewed += sum(after.get(path) != when for path, when in before.items())
                kept += len(before)
                moments.append(len(after))
                say(f"kill {kills}: {len(after)} pictures finished")
            before = finished(out)
            begin(work / "bank", out, 2).communicate()
            after = finished(out)
            renewed += sum(after.get(path) != when for path, when in before.items())
            found = contents(out)
            wrong += [each for each in {*wanted, *found} if wanted.get(each) != found.get(each)]
    path = write_result(
        "resume",
        "python benchmarks/resume.py",
        SEED,
        f"{kills} kills of the rendering of {chosen.bones} phantoms, {sets} sets finished",
        rows(kills, wrong, renewed, kept, len(wanted), moments),
    )
    say(str(path))
    if wrong or renewed:
        raise SystemExit("the sets differ, or finished pictures were made again")


def rows(
    kills: int, wrong: list[str], renewed: int, kept: int, files: int, moments: list[int]
) -> list[dict[str, Any]]:
    return [
        {
            "what": "kills (SIGKILL, workers too)",
            "value": kills,
            "unit": "kills",
            "note": f"pictures finished at each: {moments}",
        },
        {
            "what": "files that differ from the undisturbed set, are missing or too many",
            "value": len(wrong),
            "unit": "files",
            "n": files,
            "note": "; ".join(wrong[:5]),
        },
        {
            "what": "finished pictures that were made again",
            "value": renewed,
            "unit": "pictures",
            "n": kept,
            "note": "by the time of writing; n sums over the kills",
        },
    ]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
