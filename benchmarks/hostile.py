"""What bad input gets to hear, case by case: `python benchmarks/hostile.py`.

Runs the cases of ``tests/app/test_untrusted_input.py`` in a process each, as a user would.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

from record import ROOT, write_result

PROGRAM = Path(sys.executable).with_name("osteoprint")


def main() -> None:
    """Run every case and record its exit code and message."""
    path = ROOT / "tests/app/test_untrusted_input.py"
    spec = importlib.util.spec_from_file_location("hostile", path)
    cases = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cases)
    rows, good = [], 0
    with tempfile.TemporaryDirectory() as folder:
        world = cases.make_world(Path(folder) / "world")
        for number, (name, (prepare, says)) in enumerate(cases.CASES.items()):
            here = Path(folder) / f"case{number:02d}"
            here.mkdir()
            arguments = prepare(here, world)
            before = cases.fingerprint_of(world)
            done = subprocess.run([str(PROGRAM), *arguments], capture_output=True, text=True)
            one_line = done.stderr.count("\n") == 1 and says in done.stderr and not done.stdout
            untouched = cases.fingerprint_of(world) == before
            good += done.returncode == 2 and one_line and untouched
            message = done.stderr.strip().replace(folder, "…")
            rows.append(
                {
                    "what": name,
                    "value": done.returncode,
                    "unit": "exit code",
                    "n": 1,
                    "note": message[:400] + ("" if untouched else " BANK CHANGED"),
                }
            )
            print(f"{done.returncode}  {name}: {message[:150]}")
    summary = {"what": "cases with exit code 2, one line that names input and fix, bank unchanged",
               "value": good, "unit": f"of {len(rows)}", "n": len(rows)}  # fmt: skip
    write_result("hostile", "make bench-hostile", 0, f"{len(rows)} named cases", [summary, *rows])
    print(f"{good} of {len(rows)} as they should be")


if __name__ == "__main__":
    main()
