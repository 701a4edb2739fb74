"""Fresh processes are counted, and those of a server are not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fresh_processes
from forking.commands import forked_commands


def test_another_fresh_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fresh_processes.MOST, "tests/test_fresh_processes.py", 1)
    subprocess.run([sys.executable, "-c", ""], check=True)
    with pytest.raises(AssertionError, match=r"test_fresh_processes\.py starts more than 1 fresh processes"):
        subprocess.run([Path(sys.executable).with_name("neuronmoe"), "--help"], check=True)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A `python` that has imported `fractions`."""
    with forked_commands(tmp_path_factory.mktemp("python"), ["fractions"], []) as commands:
        yield commands / "python"


ENDS = {
    "code": ("raise SystemExit(3)", 3, ""),
    "message": ("raise SystemExit('said')", 1, "said"),
    "error": ("raise ValueError('said')", 1, "ValueError: said"),
    "hook": ("import sys; sys.excepthook = lambda *_: sys.exit(5); 1 / 0", 5, ""),
    "handler": ("import atexit; atexit.register(print, 'said', file=__import__('sys').stderr)", 0, "said"),
    "thread": ("import threading, time; threading.Timer(0.1, print, ['said']).start()", 0, ""),
    "signal": ("import os; os.kill(os.getpid(), 9)", -9, ""),
}


@pytest.mark.parametrize("kind", ENDS)
def test_a_forked_process_ends_as_a_fresh_one(
    kind: str, python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, code, line = ENDS[kind]
    monkeypatch.setitem(fresh_processes.MOST, "tests/test_fresh_processes.py", 99)
    shown = "import sys, os; print(sys.argv, sys.path[0], os.getcwd(), os.environ['GIVEN'], input())\n"
    command = ["-c", shown + program, "a", "b c"]
    forked, fresh = (
        subprocess.run(
            [given, *command],
            env=os.environ | {"GIVEN": "γειά"},
            cwd=tmp_path,
            input="read\n",
            capture_output=True,
            text=True,
        )
        for given in (python, sys.executable)
    )
    assert (forked.returncode, forked.stdout) == (fresh.returncode, fresh.stdout) == (code, fresh.stdout)
    assert "γειά read" in fresh.stdout
    assert forked.stderr.splitlines()[-1:] == fresh.stderr.splitlines()[-1:] == ([line] if line else [])


def test_a_forked_process_has_the_imports_and_dies_with_who_started_it(python: Path, tmp_path: Path) -> None:
    program = "import os, sys, time; print('fractions' in sys.modules, os.getpid(), flush=True); time.sleep(60)"
    process = subprocess.Popen([python, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    has_imports, number = process.stdout.readline().split()
    assert has_imports == "True"
    process.terminate()
    assert process.wait(timeout=30) == -15
    assert not Path("/proc", number).exists()
    process.stdout.close()
