"""Programs that are forked, those that cannot be, and studies of both: to a user they are the same.

That hosts find the same numbers is shown beside their other commands: `test_train.py` and `test_adapters.py`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from made_studies import HOSTS, SPEC, Studies

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.steps import Start, run_command, start_process, stop_commands
from neuronmoe_plugins.study import forks, running
from neuronmoe_plugins.study.forks import ForkServer, fork_server, start_forked

SHOWN = """
import os, sys
print(*sys.argv, os.getcwd(), os.environ["GIVEN"], os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK"), sys.stdin.read())
print("fractions" in sys.modules, file=open("modules", "w"))
"""
ENDS = {
    "well": ("", "$ "),
    "code": ("sys.exit(3)", "`program a` failed with exit code 3: "),
    "message": ("sys.exit('no luck')", "`program a` failed with exit code 1: no luck (all its output is in "),
    "error": ("raise ValueError('no luck')", "`program a` failed with exit code 1: ValueError: no luck (all its"),
    "signal": ("sys.stdout.flush(); os.kill(os.getpid(), 9)", "`program a` failed with exit code -9: "),
}


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with fork_server(["fractions", "no_such_module"], os.environ) as started:
        yield started


def write_program(folder: Path, code: str) -> Path:
    path = folder / "program"
    path.write_text(f"#!{sys.executable}\n{code}")
    path.chmod(0o755)
    return path


def outcome_of(start: Start, program: Path) -> tuple[str, str]:
    """What its log has, and the error."""
    said = ""
    environment = {"GIVEN": "γειά", "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    try:
        run_command([program.name, "a", "b c"], program.parent / "log", program.parent, environment, start=start)
    except UserError as error:
        said = str(error)
    return (program.parent / "log").read_text(), said


@pytest.mark.parametrize("kind", ENDS)
def test_a_fork_says_and_does_what_a_process_does(
    kind: str, server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, said = ENDS[kind]
    program = write_program(tmp_path, SHOWN + end)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))  # beside which programs are found
    monkeypatch.delenv("PYTORCH_NVML_BASED_CUDA_CHECK", raising=False)  # which accelerate sets

    forked = outcome_of(server.start, program)
    assert (tmp_path / "modules").read_text() == "True\n"
    assert forked == outcome_of(start_process, program)
    assert (tmp_path / "modules").read_text() == "False\n"
    assert forked[0].startswith(f"$ program a 'b c'\n{program} a b c {tmp_path} γειά None")
    assert forked[1 if end else 0].startswith(said)


def test_forks_end_when_commands_are_stopped(server: ForkServer, tmp_path: Path) -> None:
    program = write_program(tmp_path, "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)")
    errors: list[UserError] = []

    def run() -> None:
        with pytest.raises(UserError) as error:
            run_command([program], tmp_path / "log", start=server.start)
        errors.append(error.value)

    thread = threading.Thread(target=run)
    thread.start()
    while not (lines := (tmp_path / "log").read_text().splitlines()[1:] if (tmp_path / "log").exists() else []):
        time.sleep(0.01)
    stop_commands()
    thread.join(20)
    assert f"failed with exit code -{signal.SIGTERM.value}: " in str(errors[0])
    assert not Path("/proc", lines[0]).exists()


def test_a_program_of_another_python_and_one_without_a_server_are_processes(tmp_path: Path) -> None:
    code = "import sys\nprint('fractions' in sys.modules)"
    own = write_program(tmp_path, code)
    other = tmp_path / "other"
    other.write_text(f"#!{sys.executable} -IS\n{code}")
    other.chmod(0o755)
    with fork_server(["fractions"], os.environ) as own_server:
        for program, has_it in ((own, "True"), (other, "False")):
            run_command([program], tmp_path / "log", start=own_server.start)
            assert (tmp_path / "log").read_text().splitlines()[1:] == [has_it]
    run_command([own], tmp_path / "log", start=own_server.start)
    assert (tmp_path / "log").read_text().splitlines()[1:] == ["False"]


def test_what_has_used_the_gpu_is_forgotten(tmp_path: Path) -> None:
    torch = tmp_path / "torch.py"
    torch.write_text("class cuda:\n    _is_in_bad_fork = staticmethod(lambda: True)")
    program = write_program(tmp_path, "import os, sys\nprint('torch' in sys.modules, sys.argv, os.environ['GIVEN'])")
    with fork_server(["torch"], os.environ | {"PYTHONPATH": str(tmp_path)}) as own_server:
        run_command([program, "a"], tmp_path / "log", env={"GIVEN": "1"}, start=own_server.start)
    assert (tmp_path / "log").read_text().splitlines()[1:] == [f"False ['{program}', 'a'] 1"]


def test_there_is_no_server_where_an_import_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fails.py").write_text("import no_such_module")
    monkeypatch.setattr(forks, "LIBRARIES", ("fails",))
    with ExitStack() as block:
        assert start_forked(block, {"PYTHONPATH": str(tmp_path)}) is start_process


@pytest.fixture
def forking(studies: Studies, tmp_path: Path) -> Studies:
    """The same studies, whose stand-ins are scripts of a Python beside them, as the hosts' commands are."""
    python = tmp_path / "bin" / "python"
    python.symlink_to(os.path.realpath(next(iter((tmp_path / "bin").iterdir())).read_text().split()[0][2:]))
    for name, code in HOSTS.items():
        (tmp_path / "bin" / name).write_text(f"#!{python}\n{code}")
    return studies


def test_a_study_of_forks_is_one_of_processes(forking: Studies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "LIBRARIES", ("fractions",))
    monkeypatch.setattr(running, "_devices", lambda jobs, given: ["3", "5"])
    forking.trouble("print('fractions' in sys.modules, os.environ['GIVEN'])")
    given = {"environment": {"GIVEN": 1}, "stage2": None, "arms": {"lora": SPEC["arms"]["lora"]}}
    result = forking.run("--jobs", "2", **given)
    assert result.exit_code == 0, result.output
    logs = [log.read_text().splitlines() for log in Path("out/runs").rglob("stage1.log")]
    assert {log[1] for log in logs} == {"True 1"}
    assert {call.split()[1] for call in forking.calls()} == {"3", "5"}

    monkeypatch.setattr(forks, "LIBRARIES", ("antigravity.gone", "this.fails"))
    forking.run("--jobs", "2", output="plain", **given)
    assert forking.rows("plain") == forking.rows()
    plain = [log.read_text().splitlines() for log in Path("plain/runs").rglob("stage1.log")]
    assert {log[1] for log in plain} == {"False 1"}


def test_a_study_of_forks_that_fails_or_is_interrupted_goes_on(forking: Studies) -> None:
    small = {"stage2": None, "learning_rates": 0.001, "seeds": 1, "arms": {"lora": SPEC["arms"]["lora"]}}
    forking.trouble("sys.exit('ValueError: bad luck')")
    assert str(forking.run(**small).exception) == (
        "lora-4 el, learning rate 0.001, seed 1: `llamafactory-cli train` failed with exit code 1: ValueError: bad "
        f"luck (all its output is in {Path('out/runs/lora-4/el_0.001_1/stage1.log').resolve()}); the same command goes "
        "on from what is done"
    )
    forking.trouble(f"os.kill({os.getpid()}, 2), time.sleep(30)")
    start = time.monotonic()
    assert "Interrupted: the same command goes on from what is done" in forking.run(**small).output
    assert time.monotonic() - start < 10
    forking.trouble()
    assert forking.run(**small).exit_code == 0
    assert len(forking.calls()) == 3


def test_a_host_that_is_missing_is_one_line(forking: Studies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.defpath)
    (tmp_path / "bin" / "lm_eval").unlink()
    assert str(forking.run().exception).startswith("base el: `lm_eval` is not installed; ")
