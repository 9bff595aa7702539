"""Rendering on Dask: four worker processes, ten of them killed on the way.

    python benchmarks/dask_workers.py

A scheduler and four workers are started as processes of their own, as on a cluster. While
``osteoprint render --dask`` runs, a worker is killed (SIGKILL) at random moments and a new one
started in its place, ten times. The set must be the undisturbed one, bit for bit, and no picture
that a finished turn's record named may have been written twice.
"""

from __future__ import annotations

import argparse
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from osteoprint.bank.store import Bank
from osteoprint.study.demo import make_phantoms
from record import write_result
from resume import contents, finished, say

PROGRAM = Path(sys.executable).with_name("osteoprint")
SEED = 0
WORKERS = 4


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Cluster:
    """A scheduler and its workers, each a process; no nanny brings the dead back."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.scheduler = self._start(
            "scheduler", "--host", self.address, "--no-dashboard", "--no-show"
        )
        self.workers = [self._worker() for _ in range(WORKERS)]

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self.work / "dask.log").open("ab")
        return subprocess.Popen([sys.executable, "-m", "dask", *arguments], stdout=log, stderr=log)

    def _worker(self) -> subprocess.Popen[bytes]:
        return self._start(
            "worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard",
            "--local-directory", str(self.work / "scratch"),
        )  # fmt: skip

    def kill_one(self, rng: random.Random) -> None:
        """Kill a worker and start another."""
        index = rng.randrange(WORKERS)
        self.workers[index].send_signal(signal.SIGKILL)
        self.workers[index].wait()
        self.workers[index] = self._worker()

    def close(self) -> None:
        for process in [*self.workers, self.scheduler]:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--bones", type=int, default=6)
    chosen = parser.parse_args()
    rng = random.Random(SEED)
    with tempfile.TemporaryDirectory(prefix="dask") as name:
        work = Path(name)
        with Bank.open(work / "bank", create=True) as bank:
            make_phantoms(bank, [f"cat {n}" for n in range(chosen.bones)], 3, size="cat")
        arguments = ["render", "--bank", str(work / "bank"), "--protocol", "paper", "--json"]
        begun = time.perf_counter()
        subprocess.run(
            [str(PROGRAM), *arguments, "--out", str(work / "whole")],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        whole_s = time.perf_counter() - begun
        wanted = contents(work / "whole")
        say(f"undisturbed: {whole_s:.1f} s, {len(wanted)} files")
        out = work / "out"
        cluster = Cluster(work)
        seen: dict[Path, int] = {}
        renewed: set[Path] = set()
        kills = 0
        try:
            with (work / "render.log").open("wb") as log:
                process = subprocess.Popen(
                    [str(PROGRAM), *arguments, "--out", str(out), "--dask", cluster.address],
                    stdout=log, stderr=log,
                )  # fmt: skip
            ended = threading.Event()
            threading.Thread(target=lambda: (process.wait(), ended.set()), daemon=True).start()
            # Once pictures come, kills are spread over what is left of the work.
            while not list(out.glob("*/unfinished/z*.json")) and not ended.wait(0.2):
                pass
            while kills < chosen.kills and not ended.wait(
                rng.uniform(0.3, 1.0) * whole_s / chosen.kills
            ):
                cluster.kill_one(rng)
                kills += 1
                now = look(out)
                renewed |= {path for path, when in seen.items() if now.get(path, when) != when}
                seen |= now
                say(f"kill {kills}: {len(now)} pictures finished")
            process.wait()
        finally:
            cluster.close()
        if process.returncode:
            raise SystemExit((work / "render.log").read_text()[-2000:])
        now = look(out)
        renewed |= {path for path, when in seen.items() if now.get(path) != when}
        found = contents(out)
    wrong = [each for each in {*wanted, *found} if wanted.get(each) != found.get(each)]
    path = write_result(
        "dask_workers",
        "python benchmarks/dask_workers.py",
        SEED,
        f"{chosen.bones} phantoms, protocol paper, {WORKERS} workers on one machine",
        [
            {"what": "workers killed on the way", "value": kills, "unit": "workers",
             "note": "each replaced by a new one"},
            {"what": "files that differ from the undisturbed set, are missing or too many",
             "value": len(wrong), "unit": "files", "n": len(wanted),
             "note": "; ".join(wrong[:5])},
            {"what": "finished pictures that were made again", "value": len(renewed),
             "unit": "pictures", "n": len(seen), "note": "by the time of writing"},
        ],
    )  # fmt: skip
    say(str(path))
    if wrong or renewed or kills < chosen.kills:
        raise SystemExit("the sets differ, finished pictures were made again, or too few kills")


def look(out: Path) -> dict[Path, int]:
    """:func:`finished`, while files come and go."""
    while True:
        try:
            return finished(out) if out.is_dir() else {}
        except (FileNotFoundError, ValueError):
            time.sleep(0.05)


if __name__ == "__main__":
    main()
