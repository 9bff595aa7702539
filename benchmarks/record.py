"""One place that writes a benchmark's result, so that all of them look the same."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"


def write_result(
    name: str, command: str, seed: int, scale: str, rows: Sequence[Mapping[str, Any]]
) -> Path:
    """Write ``benchmarks/results/<name>.json``, whole or not at all.

    Parameters
    ----------
    name : of the benchmark; also of the file.
    command : what to type to get the result again.
    seed : the seed of whatever was drawn by chance.
    scale : in words, how much was measured.
    rows : each with "what", "value" and "unit"; "n", "ci95" and "note" where they apply.

    Returns
    -------
    The file.

    Raises
    ------
    ValueError : a row lacks what it measures, its value or its unit.
    """
    for row in rows:
        missing = {"what", "value", "unit"} - row.keys()
        if missing:
            raise ValueError(f"row {dict(row)} lacks {sorted(missing)}")
    result = {
        "benchmark": name,
        "command": command,
        "commit": _COMMIT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "seed": seed,
        "scale": scale,
        "rows": [dict(row) for row in rows],
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(path)
    return path


def machine() -> dict[str, Any]:
    """Processor, cores that may be used, memory and GPU (None where there is none)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": _cpu(), "cores": cores, "memory_gib": _memory_gib(), "gpu": _gpu()}


def commit() -> str | None:
    """The commit measured, with "+" where the tree holds changes; None outside of git."""
    head = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    if not head:
        return None
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--", "src")
    return head + ("+" if changed else "")


def real_bones() -> Path:
    """The folder of real bones: $OSTEOPRINT_DATA, or ``../shared/data`` beside the project.

    Ends the benchmark with a message where it is absent.
    """
    given = os.environ.get("OSTEOPRINT_DATA")
    folder = Path(given) if given else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        raise SystemExit(f"{folder}: no real bones there; set OSTEOPRINT_DATA to their folder")
    return folder


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
    return round(pages * size / 2**30, 1)


def _gpu() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    names = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return names.splitlines()[0] if names else None


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


# What is measured is the code as it was when the benchmark began, whatever is committed since.
_COMMIT = commit()
