"""The small world that commands are tried on: made once, a copy for every file of tests."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of two enrolled cat femora, its model, and a good pair of films of the first."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # the same for all processes
    made, whole = shared / "world", shared / "world.made"
    with FileLock(shared / "world.lock"):
        if not whole.is_file():
            shutil.rmtree(made, ignore_errors=True)
            _make(made)
            whole.touch()
    return Path(shutil.copytree(made, tmp_path_factory.mktemp("world") / "world"))


def _make(folder: Path) -> None:
    path = Path(__file__).with_name("test_untrusted_input.py")
    spec = importlib.util.spec_from_file_location("hostile_world", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.make_world(folder)
