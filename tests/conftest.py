"""Where the real bones are, for the tests that need them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


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
