"""The command line, in process: exit codes, one-line errors, JSON."""

from __future__ import annotations

import json

import pytest

from osteoprint.app.cli import run


def test_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("osteoprint ")


@pytest.mark.parametrize(
    "command",
    ["ingest", "render", "train", "onnx", "enrol", "identify", "verify", "reconstruct", "compare",
     "study", "demo", "doctor"],
)  # fmt: skip
def test_every_command_has_help_with_an_example(command, capsys):
    assert run([command, "--help"]) == 0
    assert f"Example: osteoprint {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["list", "check", "backup", "restore", "export"])
def test_every_bank_command_has_help_with_an_example(command, capsys):
    assert run(["bank", command, "--help"]) == 0
    assert f"Example: osteoprint bank {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bogus"], "No such command"),
        (["ingest"], "Missing argument"),
        (["ingest", "x", "--bank", "y", "--side", "top"], "--side"),
        (["identify", "a", "b", "--bank", "x", "--top", "0"], "--top"),
        (["study", "nothing", "--bank", "x", "--out", "y"], "nothing"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(arguments, says, capsys):
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert captured.err.count("\n") == 1


def test_an_error_of_ours_is_exit_code_1_without_a_traceback(capsys, monkeypatch):
    monkeypatch.delenv("OSTEOPRINT_DEBUG", raising=False)

    def broken(*_args, **_kwargs):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("osteoprint.bank.store.Bank.open", broken)
    assert run(["bank", "list", "--bank", "x"]) == 1
    error = capsys.readouterr().err
    assert "internal error: RuntimeError: two lines" in error
    assert error.count("\n") == 1


def test_doctor_answers_in_json(capsys):
    assert run(["doctor", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["missing"] == []
    assert values["versions"]["torch"]
