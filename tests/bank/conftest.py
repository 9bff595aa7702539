"""Users and folders for the tests of the bank."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # the tests share bank_samples.py


@pytest.fixture
def anybody() -> Iterator[Callable[[], None]]:
    """Call it, and the rest of the test runs without the rights of root."""

    def drop() -> None:
        if os.geteuid() == 0:
            os.seteuid(65534)

    yield drop
    if os.getuid() == 0:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """An empty folder that every user may enter and change."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    for inner in folder.rglob("*"):
        if inner.is_dir():
            inner.chmod(0o755)
    shutil.rmtree(folder)
