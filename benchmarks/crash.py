"""Kill a command that writes to a bank, again and again, and see what it left.

    python benchmarks/crash.py                                    # a writer of synthetic bones
    python benchmarks/crash.py -- osteoprint ingest scan/ --bank {bank}
    python benchmarks/crash.py --start mybank -- osteoprint enrol --model m --bank {bank}

``{bank}`` stands for the bank, a fresh copy of ``--start`` (or nothing) each time. The
command runs undisturbed once, which says when it writes; then it is killed (SIGKILL, with
its children) at random moments between taking the right to write and its end. After each
kill the bank must open and be whole, hold all that it held before and nothing that the
undisturbed run did not make, and the command, run again, must end where the undisturbed run
ended. A process is killed, not the machine: what a power cut does is up to the disk.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from osteoprint.bank.maintenance import check
from osteoprint.bank.store import Bank
from osteoprint.errors import BankError
from record import write_result

POLL_S = 0.002


@dataclass
class Tally:
    """What was seen after the kills."""

    kills: int = 0
    survived: int = 0
    before_the_bank: int = 0
    unfinished: int = 0
    complete: int = 0
    leftovers: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """A command on a bank: how long until it took the right to write, and until it ended."""

    writing_s: float
    whole_s: float


def holdings(bank: Path) -> dict[str, object] | None:
    """What a bank holds, by key; None where there is no bank yet. Raises BankError, damaged."""
    try:
        opened = Bank.open(bank)
    except BankError as error:
        if error.problem.startswith(("no such bank", "not a bank")):
            return None
        raise
    with opened:
        found: dict[str, object] = {bone.id: bone.individual for bone in opened.bones()}
        for bone in opened.bones():
            found[f"surface of {bone.id}"] = len(opened.surface(bone).faces)
        for model in opened.models():
            found[model.id] = model.card
            for bone_id, views in opened.enrolled(model).items():
                found[f"{model.id} on {bone_id}"] = views
    return found


def begin(command: list[str], bank: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start the command on ``bank``, in a process group of its own."""
    filled = [part.replace("{bank}", str(bank)) for part in command]
    with log.open("wb") as file:
        return subprocess.Popen(filled, stdout=file, stderr=file, start_new_session=True)


def lock_time(bank: Path) -> int:
    """When somebody last took the right to write, in ns; 0 for never."""
    try:
        return (bank / "bank.lock").stat().st_mtime_ns
    except OSError:
        return 0


def finish(command: list[str], bank: Path, log: Path) -> Run:
    """Run the command to its end. Raises SystemExit, with what it said, when it fails."""
    earlier, begun = lock_time(bank), time.monotonic()
    process = begin(command, bank, log)
    writing = None
    while process.poll() is None:
        if writing is None and lock_time(bank) != earlier:
            writing = time.monotonic() - begun
        time.sleep(POLL_S)
    if process.returncode != 0:
        sys.exit(f"the command failed ({process.returncode}):\n{log.read_text(errors='replace')}")
    whole = time.monotonic() - begun
    return Run(whole if writing is None else writing, whole)


def kill_in_time(command: list[str], bank: Path, log: Path, moment: float, typical: Run) -> None:
    """Run the command and kill it; ``moment`` from 0 (begins to write) to 1 (ends)."""
    earlier = lock_time(bank)
    process = begin(command, bank, log)
    while process.poll() is None and lock_time(bank) == earlier:
        time.sleep(POLL_S)
    try:
        process.wait(timeout=moment * (typical.whole_s - typical.writing_s))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def examine(bank: Path, before: dict, after: dict, tally: Tally) -> None:
    """Compare what a killed command left with what was there before and is there at the end."""
    try:
        found = holdings(bank)
        if found is None:
            tally.before_the_bank += 1
            if before:
                tally.failures.append("the bank is gone")
            return
        report = check(bank)
    except BankError as error:
        tally.failures.append(str(error))
        return
    tally.failures += report.problems
    tally.failures += [f"lost: {key}" for key in before if found.get(key) != before[key]]
    tally.failures += [f"half: {key}" for key in found if found[key] != after.get(key)]
    tally.leftovers += bool(report.orphans)
    tally.complete += found == after
    tally.unfinished += found != after


def crash(
    command: list[str], start: Path | None, kills: int, rng: random.Random, folder: Path
) -> Tally:
    """Kill ``command`` ``kills`` times, each time on a fresh bank in ``folder``."""
    bank, log, tally = folder / "bank", folder / "log", Tally()

    def fresh() -> dict:
        shutil.rmtree(bank, ignore_errors=True)
        if start:
            shutil.copytree(start, bank)
        return holdings(bank) or {}

    before = fresh()
    typical = finish(command, bank, log)
    after = holdings(bank) or {}
    print(f"undisturbed: writes from {typical.writing_s:.2f} s to {typical.whole_s:.2f} s")
    for number in range(kills):
        fresh()
        # One kill in each stretch of the work, at a random place of it.
        moment = (number + rng.random()) / kills
        kill_in_time(command, bank, log, moment, typical)
        tally.kills += 1
        failures = len(tally.failures)
        examine(bank, before, after, tally)
        finish(command, bank, log)
        report = check(bank)
        tally.failures += [*report.problems, *(f"not swept: {name}" for name in report.orphans)]
        if holdings(bank) != after:
            tally.failures.append("run again, the command did not end where it should")
        tally.survived += len(tally.failures) == failures
        print(f"kill {number + 1} at {moment:.0%} of the writing: {len(tally.failures)} failures")
    return tally


def write_bones(bank: Path) -> None:
    """The writer that is killed when no command is given: bones, a model, fingerprints."""
    import numpy as np
    import trimesh
    from safetensors.numpy import save_file

    from osteoprint.bank.records import NewBone

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, Bank.open(bank, create=True) as opened:
        weights = Path(folder) / "model.safetensors"
        save_file({"w": np.zeros(1_000_000, dtype=np.float32)}, weights)
        model, _ = opened.add_model(weights, {"name": "synthetic"})
        for number in range(12):
            scan = rng.bytes(4_000_000)
            bone = NewBone(
                name=f"ball {number}",
                individual=f"person {number}",
                surface=trimesh.creation.icosphere(subdivisions=5, radius=20.0 + number),
                length_mm=40.0 + 2 * number,
                bone_to_world=np.eye(4),
                volume=lambda path, scan=scan: path.write_bytes(scan),
            )
            record, _ = opened.add_bone(bone)
            vectors = rng.normal(size=(900, 128))
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            opened.enrol(model, record, [f"view {view}" for view in range(900)], vectors)


def rows_of(tally: Tally, what: str) -> list[dict[str, object]]:
    """The rows of the result file."""
    return [
        {"what": f"{what}: {label}", "value": value, "unit": "kills", "n": tally.kills, "note": ""}
        for label, value in (
            ("kill -9 survived: bank whole, nothing lost, rerun complete", tally.survived),
            ("killed before there was a bank", tally.before_the_bank),
            ("killed half-way, the finished part kept", tally.unfinished),
            ("killed after the last write", tally.complete),
            ("left a file that the next writer swept away", tally.leftovers),
        )
    ]


def main() -> None:
    """Parse the command line, kill, report; exit code 1 when anything was lost or damaged."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="bank to begin with, copied before each run")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder without")
    parser.add_argument("--writer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("command", nargs="*", help="after --; {bank} stands for the bank")
    options = parser.parse_args()
    if options.writer:
        write_bones(options.writer)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        work = Path(folder)
        if options.command:
            trials = [(" ".join(options.command), options.command, options.start)]
        else:
            trials = the_programs_own(work)
        rows, failures = [], []
        for number, (what, command, start) in enumerate(trials):
            (work / f"trial{number}").mkdir()
            rng = random.Random(options.seed + number)
            tally = crash(command, start, options.kills, rng, work / f"trial{number}")
            print(what, tally)
            rows += rows_of(tally, what)
            failures += tally.failures
    if not options.command:
        scale = f"{options.kills} × SIGKILL at random moments for each of {len(trials)} commands"
        write_result("crash", "make bench-crash", options.seed, scale, rows)
    if failures:
        sys.exit(1)


def the_programs_own(work: Path) -> list[tuple[str, list[str], Path | None]]:
    """What the record is made of: (name, command, bank to begin with), on cat-sized phantoms."""
    from osteoprint.fingerprint.model import save_model
    from osteoprint.fingerprint.settings import TrainingSettings
    from osteoprint.study.demo import make_phantoms
    from osteoprint.study.experiment import load_bones, train_on
    from osteoprint.xray.standard import StandardFrame

    program = str(Path(sys.executable).with_name("osteoprint"))
    names = [f"cat-{n}" for n in range(4)]
    with Bank.open(work / "start", write=True, create=True) as bank:
        make_phantoms(bank, names, 0, size="cat")
        bones = load_bones(bank)
        surfaces = []
        for bone in bones:
            bone.surface.export(work / f"{bone.record.name}.ply")
            surfaces.append(str(work / f"{bone.record.name}.ply"))
    frame = StandardFrame.for_length(max(b.record.length_mm for b in bones), rows=96)
    settings = TrainingSettings(steps=2, variants_per_bone=1, poses_per_variant=2)
    save_model(train_on(bones, frame, settings), work / "model.safetensors")
    own = [sys.executable, str(Path(__file__).resolve()), "--writer", "{bank}"]
    enrol = [program, "enrol", "--model", str(work / "model.safetensors"), "--bank", "{bank}"]
    return [
        ("ingest of 4 surfaces", [program, "ingest", *surfaces, "--bank", "{bank}"], None),
        ("enrol of 4 bones", enrol, work / "start"),
        ("a writer of many small bones", own, None),
    ]


if __name__ == "__main__":
    main()
