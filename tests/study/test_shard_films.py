"""Shards as training films: they show what would be rendered anew."""

from __future__ import annotations

import json

import numpy as np
import pytest

from osteoprint.bank.store import Bank
from osteoprint.errors import InputError
from osteoprint.fingerprint.samples import PairPose, from_bytes, render_pair
from osteoprint.study import shard_films as module
from osteoprint.study.dataset import render_bank
from osteoprint.study.demo import make_phantoms
from osteoprint.study.experiment import load_bones, quiet
from osteoprint.study.shard_films import shard_films
from osteoprint.study.workers import open_workers
from osteoprint.xray.camera import Pose
from osteoprint.xray.protocol import Protocol
from osteoprint.xray.standard import StandardFrame

FEW = Protocol("few", (0.0, 12.0), (-6.0,), (60.0,))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    with Bank.open(folder / "bank", write=True, create=True) as bank:
        make_phantoms(bank, ["one", "two"], 3, size="cat", voxels=150)
        with open_workers(1) as workers:
            render_bank(bank, folder / "x", FEW, workers, shards=True)
        bones = load_bones(bank)
    return folder / "x", bones, StandardFrame.for_length(max(b.record.length_mm for b in bones))


def test_a_shard_shows_what_would_be_rendered(rendered, monkeypatch) -> None:
    """Read by two processes, as large ones are, and by this one."""
    folder, bones, frame = rendered
    here = shard_films(folder, bones, frame, quiet)
    monkeypatch.setattr(module, "_SMALL_BYTES", 0)
    monkeypatch.setattr(module, "cores", lambda: 2)
    assert np.array_equal(shard_films(folder, bones, frame, quiet), here)
    shown = from_bytes(here)
    assert shown.shape == (2, 2, 2, frame.rows, frame.columns)
    for pictures, bone in zip(shown, bones, strict=True):
        for picture, turn in zip(pictures, FEW.long_deg, strict=True):
            pose = PairPose(Pose(turn, -6.0), Pose(turn, -6.0), 60.0)
            again = render_pair(bone.sample, pose, frame)
            assert np.abs(picture - again).mean() < 0.01
            assert np.corrcoef(picture.ravel(), again.ravel())[0, 1] > 0.99


def test_what_is_no_set_of_these_bones_is_said(rendered, tmp_path) -> None:
    folder, bones, frame = rendered
    with pytest.raises(InputError, match="manifest"):
        shard_films(tmp_path, bones, frame, quiet)
    said = json.loads((folder / "manifest.json").read_text())
    for change, words in (
        ({"bones": said["bones"][:1]}, "no shard of"),
        ({"bones": [e | {"scan_sha256": "0"} for e in said["bones"]]}, "another scan"),
        ({"bones": [e | {"shard": "none.tar"} for e in said["bones"]]}, "not a whole shard"),
        ({"bones": [e | {"views": {}} for e in said["bones"]]}, "does not fit"),
    ):
        (tmp_path / "manifest.json").write_text(json.dumps(said | change))
        for entry in said["bones"]:
            target = tmp_path / entry["shard"]
            target.parent.mkdir(exist_ok=True)
            target.write_bytes((folder / entry["shard"]).read_bytes())
        with pytest.raises(InputError, match=words):
            shard_films(tmp_path, bones, frame, quiet)
