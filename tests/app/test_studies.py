"""The studies that train many networks, as commands: what they answer and leave behind."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest

from osteoprint.app.cli import run
from osteoprint.bank.store import Bank
from osteoprint.study import ablation, paper, paper_page
from osteoprint.study.ablation import BASE, SMALL, Case, Scale

TINY = Scale("tiny", 5, dataclasses.replace(SMALL.settings, steps=1), "resnet10t")
UNSEEN = "cat 3,cat 4"


@pytest.fixture
def bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bank whose bones are five coarse cats', and studies of the smallest size."""
    path = Path(__file__).parents[1] / "study" / "cats.py"
    spec = importlib.util.spec_from_file_location("small_cats", path)
    cats = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cats)
    bones = [cats.make_bone(index) for index in range(5)]
    monkeypatch.setattr("osteoprint.study.experiment.load_bones", lambda *_: bones)
    lines = [BASE, Case("d = 16", -1.0, network={"dimension": 16})]
    monkeypatch.setattr(ablation, "cases", lambda _: lines)
    monkeypatch.setitem(ablation.SCALES, "small", TINY)
    Bank.create(tmp_path / "bank").close()
    return tmp_path / "bank"


def ask(capsys, *arguments: object) -> dict:
    capsys.readouterr()
    assert run([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_study_ablation(bank, capsys, tmp_path):
    argv = ["study", "ablation", "--bank", bank, "--out", tmp_path / "a", "--unseen", UNSEEN]
    answer = ask(capsys, *argv, "--repeats", 2)
    assert answer["scale"] == "tiny, 1 steps"
    assert [row["seeds"] for row in answer["table"]] == [2, 2]
    assert Path(answer["report"]).is_file()
    assert (tmp_path / "a" / "ablation.json").is_file()


def test_study_paper(bank, capsys, tmp_path, monkeypatch):
    # The study itself is tried where it is made; here, that it is asked for as was said.
    asked = []

    def noted(bones, settings, scale, progress):
        asked.append((len(bones), settings.unseen, settings.training.minutes, scale.name))

    row = {"what": "a", "paper": "1", "ours": "2", "why": ""}
    monkeypatch.setattr(paper, "run_paper", noted)
    monkeypatch.setattr(paper_page, "write_paper", lambda *_: {"rows": [row]})
    argv = ["study", "paper", "--bank", bank, "--out", tmp_path / "p", "--unseen", UNSEEN]
    answer = ask(capsys, *argv, "--minutes", 2, "--scale", "full")
    assert asked == [(5, ("cat 3", "cat 4"), 2.0, paper.SCALES["full"].name)]
    assert answer["rows"] == [row]
    assert answer["report"].endswith("paper.html")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--bank or --phantoms"),
        (("--phantoms", "--bank", "x"), "--bank or --phantoms"),
        (("--phantoms", "--minutes", "1"), "--steps"),
    ],
)
def test_train_wants_one_source_of_bones(options, said, capsys, tmp_path):
    assert run(["train", "--out", str(tmp_path / "m.safetensors"), *options]) == 2
    assert said in capsys.readouterr().err
