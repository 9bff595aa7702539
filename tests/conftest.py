"""Where the real bones are, for the tests that need them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Test processes share the cores: each with as many threads as there are cores, they would spend
# most of their time waiting for each other. Read when the libraries are loaded, and handed on to
# the processes that tests start.
_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _PROCESSES > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _PROCESSES)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def real_data_folder() -> Path | None:
    """The folder of real bones, or None where there is none."""
    given = os.environ.get("OSTEOPRINT_DATA")
    here = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    return here if here.is_dir() else None


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The real bones; skips the test, saying so, where they are absent."""
    folder = real_data_folder()
    if folder is None:
        pytest.skip("no real bones: set OSTEOPRINT_DATA or put them at ../shared/data")
    return folder
