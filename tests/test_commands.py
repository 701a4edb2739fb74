"""Other programs' failures are one clear line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.steps import run_command


def test_output_and_variables_go_to_the_log(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['GREETING']); print('to stderr', file=sys.stderr)"

    run_command([sys.executable, "-c", code], tmp_path / "logs" / "x.log", env={"GREETING": "γειά"})

    log = (tmp_path / "logs" / "x.log").read_text(encoding="utf-8")
    assert log.startswith(f"$ {sys.executable} -c ")
    assert "γειά\n" in log
    assert "to stderr\n" in log


def test_programs_beside_the_interpreter_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    run_command([Path(sys.executable).name, "-c", "print('found')"], tmp_path / "x.log")

    assert "found" in (tmp_path / "x.log").read_text(encoding="utf-8")


def test_a_missing_program_is_named_with_the_advice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`no-such-program` is not installed; get it elsewhere"):
        run_command(["no-such-program"], tmp_path / "x.log", hint="get it elsewhere")


def test_a_failure_shows_its_last_line_and_the_log(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        run_command([sys.executable, "-c", "print('start'); raise SystemExit('no network\\n')"], tmp_path / "x.log")

    message = str(caught.value)
    assert "failed with exit code 1: no network" in message
    assert str(tmp_path / "x.log") in message
    assert "\n" not in message
