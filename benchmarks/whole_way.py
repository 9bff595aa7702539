"""From real bones to identity and shape, by the commands a user types.

The 29 femora of ``smir_right_femora``: 00-23 known, 24-28 never seen, the whole pipeline on
the CPU. And the CT series of ``vhf_lower_legs``: from a folder of DICOM to four bones.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from record import real_bones, write_result

UNSEEN = "24,25,26,27,28"
PROGRAM = Path(sys.executable).with_name("osteoprint")


def osteoprint(*arguments: str) -> tuple[dict, float, float]:
    """Run a command with --json: its answer, seconds, and peak memory of any child so far in GB."""
    started = time.monotonic()
    done = subprocess.run(
        [str(PROGRAM), *arguments, "--json"], stdout=subprocess.PIPE, text=True, check=True
    )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    return json.loads(done.stdout), time.monotonic() - started, peak


def ct_rows(data: Path, work: Path) -> list[dict]:
    """The real CT: four bones, whole, closed, apart."""
    with tarfile.open(data / "vhf_lower_legs" / "slices.tar.xz") as archive:
        archive.extractall(work / "vhf", filter="data")
    answer, seconds, peak = osteoprint(
        "ingest", str(work / "vhf"), "--bank", str(work / "legs"), "--individual", "vhf", "--repair"
    )
    rows = [
        {"what": "real CT to bank: time", "value": round(seconds, 1), "unit": "s", "n": 1,
         "note": "350 DICOM slices, 512 × 512"},
        {"what": "real CT to bank: peak memory", "value": round(peak, 2), "unit": "GB", "n": 1},
        {"what": "real CT: whole bones found", "value": len(answer["bones"]), "unit": "bones",
         "n": 1, "note": "; ".join(answer["warnings"])},
    ]  # fmt: skip
    for bone in sorted(answer["bones"], key=lambda b: b["name"]):
        rows.append(
            {
                "what": f"real CT: length of the {bone['side']} {bone['bone']}",
                "value": bone["length_mm"],
                "unit": "mm",
                "n": 1,
                "note": "closed surface" if bone["watertight"] else "NOT CLOSED",
            }
        )
    return rows


def study_rows(data: Path, work: Path, seed: int, keep: Path | None) -> list[dict]:
    """Known and unseen femora: who, and what shape, beside the trivial answers."""
    femora = sorted(str(p) for p in (data / "smir_right_femora").glob("*.ply"))
    _, ingest_s, _ = osteoprint("ingest", *femora, "--bank", str(work / "femora"))
    out = keep or work / "report"
    _, study_s, _ = osteoprint(
        "study", "reconstruction", "--bank", str(work / "femora"), "--out", str(out),
        "--unseen", UNSEEN, "--seed", str(seed),
    )  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    near, who = report["reconstruction"]["summary"], report["recognition"]
    matches = report["reconstruction"]["bones"]
    each = "; ".join(
        f"{m['name']}: {m['rms_mm']:.2f} mm, {m['better']:.2f} better" for m in matches
    )

    def row(what: str, value: float, unit: str, note: str = "", n: int = len(matches)) -> dict:
        return {"what": what, "value": round(value, 4), "unit": unit, "n": n, "note": note}

    return [
        row("nearest match: known bones that would have been better", near["better"],
            "of 24", f"bar 1.0; the paper 2.6 (cats). {each}"),
        row("nearest match: mean RMS", near["rms_mm"], "mm"),
        row("nearest match: mean RMS over the best there is", near["rms_over_best"], "ratio",
            "bar 1.2"),
        row("nearest match: mean Hausdorff", near["hausdorff_mm"], "mm"),
        row("nearest match: mean relative RMS", near["rms_relative"], "of diagonal",
            "the paper 0.0073"),
        row("baseline, same length: mean RMS", near["same_length_rms_mm"], "mm"),
        row("baseline, same length: better bones", near["same_length_better"], "of 24"),
        row("baseline, best known bone: mean RMS", near["best_rms_mm"], "mm"),
        row("baseline, mean shape: mean RMS", near["mean_shape_rms_mm"], "mm"),
        row("baseline, any known bone: mean RMS", near["any_rms_mm"], "mm"),
        row("known bones, angle held out: rank 1", who["rank1"], "share", "bar 0.99",
            who["probes"]),
        row("known bones, one enrolled view each: rank 1", who["rank1_one_view"], "share", "",
            who["probes"]),
        row("known bones: pairs on the right side of the best threshold", who["pair_accuracy"],
            "share", "", who["probes"]),
        row("known bones: equal error rate", who["equal_error_rate"], "share", "", who["probes"]),
        row("ingest of 29 surfaces", ingest_s, "s", "", 29),
        row("study: render, train, ask, measure, report", study_s, "s", "", 1),
    ]  # fmt: skip


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="keep the study's report in this folder")
    options = parser.parse_args()
    data = real_bones()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        rows = ct_rows(data, work) + study_rows(data, work, options.seed, options.report)
    path = write_result(
        "whole_way",
        "make bench-whole-way",
        options.seed,
        "24 known and 5 unseen real femora (split by individual), phantom CT at 450 voxels a "
        "bone, noiseless films of 60-158 keV, turns ±21°; one real CT of two lower legs",
        rows,
    )
    print(path)
    for row in rows:
        print(f"{row['what']:<62} {row['value']:>10} {row['unit']}")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
