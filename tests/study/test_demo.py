"""The demo's folder: an earlier demo is replaced, anything else is left alone."""

from __future__ import annotations

import pytest

from osteoprint.errors import InputError
from osteoprint.study import demo
from osteoprint.study.demo import run_demo


@pytest.fixture(autouse=True)
def _stop_before_the_work(monkeypatch):
    """What comes after the folder is made is not tested here."""

    def stop(*_args, **_kwargs):
        raise InterruptedError

    monkeypatch.setattr(demo, "make_phantoms", stop)


def test_a_demo_is_replaced(tmp_path):
    for _ in range(2):
        with pytest.raises(InterruptedError):
            run_demo(tmp_path / "demo")
        (tmp_path / "demo/report.html").write_text("old")
    with pytest.raises(InterruptedError):
        run_demo(tmp_path / "demo")
    assert not (tmp_path / "demo/report.html").exists()


def test_somebody_elses_bank_is_not(tmp_path):
    (tmp_path / "bank").mkdir()
    (tmp_path / "bank/bank.sqlite").write_text("precious")
    with pytest.raises(InputError, match="holds bank"):
        run_demo(tmp_path)
    assert (tmp_path / "bank/bank.sqlite").read_text() == "precious"
