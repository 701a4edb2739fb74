"""`neuronmoe doctor` as its user sees it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from neuronmoe_plugins import doctor

NEURONMOE = str(Path(sys.executable).with_name("neuronmoe"))


def rows(output: str) -> dict[str, list[str]]:
    """First column -> the other columns of every row that starts one."""
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines() if "│" in line]
    return {row[0]: row[1:] for row in cells if row[0]}


def test_every_host_is_found_and_hooked() -> None:
    result = subprocess.run([NEURONMOE, "doctor"], capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result.stdout
    table = rows(result.stdout)
    assert list(table) == ["torch autoload", "peft", "transformers", "llamafactory", "deepspeed", "lm-eval"]
    assert [row[1:3] for row in table.values()] == [["yes", "yes"]] * 4 + [["yes", "-"]] * 2


def test_a_switched_off_autoload_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURONMOE_AUTOLOAD", "0")
    monkeypatch.setattr(doctor, "HOSTS", doctor.HOSTS[:2])
    findings = doctor.examine()
    assert [finding.hooked for finding in findings] == [False, False]
    assert all("NEURONMOE_AUTOLOAD=0" in finding.advice and not finding.healthy for finding in findings)


def test_unsupported_missing_and_broken_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    peft = doctor.HOSTS[1]
    hosts = (
        replace(peft, name="too old", supported=SpecifierSet(">=99")),
        replace(peft, name="missing", distribution="no-such-distribution"),
        replace(peft, name="broken", modules=("peft.no_such_module",)),
    )
    monkeypatch.setattr(doctor, "HOSTS", hosts)
    unsupported, missing, broken = doctor.examine()
    assert not unsupported.healthy and ">=99" in unsupported.advice
    assert missing.healthy and missing.version is None and "not installed" in missing.advice
    assert not broken.healthy and "ModuleNotFoundError" in broken.advice
