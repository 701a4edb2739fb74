"""`python -m benchmarks.gpu`: limits and records by steps of plain Python, and its benchmarks at their tiny sizes."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import gpu
from benchmarks.gpu import STEPS, Step
from benchmarks.table import READERS

DONE = Step("done", ("timeit", "-n1", "-r1", "open(r'{result}.json', 'w').write('7')"), 60)
FAILS = Step("fails", ("json.tool", "missing.json"), 60)
# It starts another process, which must not outlive it.
SLEEPS = Step("sleeps", ("timeit", "-n1", "-r1", "import os; os.fork(); open(f'{result}.{os.getpid()}', 'w');"
                         "import time; time.sleep(60)"), 1)  # fmt: skip


@pytest.fixture(autouse=True)
def without_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """What asks the hosts for their versions would import them in a fresh process."""
    monkeypatch.setattr(gpu, "VERSIONS", """print('{"machine": {"gpu": "a card"}}')""")
    monkeypatch.setattr(gpu, "LEAST_SECONDS", 1)


def run(folder: Path, steps: tuple[Step, ...], *words: str) -> tuple[int, dict[str, Any]]:
    path = list(sys.path)
    try:
        code = gpu.main(["--output", str(folder), *words], steps)
    finally:
        sys.path[:] = path
    return code, json.loads((folder / "gpu.json").read_text())


def test_each_step_leaves_how_it_ended(tmp_path: Path) -> None:
    lacking = Step("lacking", ("timeit",), 60, needs=("no_such_module",))
    code, record = run(tmp_path, (SLEEPS, FAILS, lacking, DONE))
    steps = record["steps"]
    assert {name: step["how"] for name, step in steps.items()} == {
        "sleeps": "out of time",
        "fails": "failed: exit code 2",
        "lacking": "not run: no no_such_module",
        "done": "done",
    }
    assert code == 1
    assert record["machine"] == {"gpu": "a card"}
    assert steps["sleeps"]["seconds"] < 1 + gpu.SECONDS_TO_STOP
    assert "missing.json" in steps["fails"]["tail"][-1]
    assert (tmp_path / "done_cuda.json").read_text() == "7"
    started = [int(path.suffix[1:]) for path in tmp_path.glob("sleeps_cuda.*")]
    assert len(started) == 2
    for process in started:
        assert not _runs(process)


def _runs(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_no_step_is_started_for_which_no_time_is_left(tmp_path: Path) -> None:
    code, record = run(tmp_path, (SLEEPS, DONE), "--limit", "1.5")
    assert [step["how"] for step in record["steps"].values()] == ["out of time", "not run: no time left"]
    assert code == 1


def test_a_run_that_is_ended_leaves_what_it_had_and_no_process(tmp_path: Path) -> None:
    long = Step("long", SLEEPS.command, 60)
    child = os.fork()
    if child == 0:
        try:
            run(tmp_path, (DONE, long))
        finally:
            os._exit(0)
    while len(list(tmp_path.glob("long_cuda.*"))) < 2:
        time.sleep(0.05)
    os.kill(child, 15)
    os.waitpid(child, 0)
    steps = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert [step["how"] for step in steps.values()] == ["done", "running"]
    assert not any(_runs(int(path.suffix[1:])) for path in tmp_path.glob("long_cuda.*"))


def test_tests_that_are_stopped_leave_what_had_failed(tmp_path: Path) -> None:
    file = tmp_path / "test_long.py"
    file.write_text("""
import pathlib, time
def test_fails(): assert not "this"
def test_sleeps(): pathlib.Path("begun").touch(); time.sleep(60)
""")
    words = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--junitxml=all.xml", str(file)]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    process = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, start_new_session=True)
    while not (tmp_path / "begun").exists():
        time.sleep(0.05)
    gpu._stop(process)
    assert process.stdout is not None
    assert b"test_long.py::test_fails FAILED" in process.stdout.read()
    assert 'name="test_fails"' in (tmp_path / "all.xml").read_text()


def test_wheels_of_a_folder_are_on_the_path_of_the_steps(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "carried-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "print('carried along')")
        wheel.writestr("carried-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1\n")
        wheel.writestr("carried-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("carried-1.dist-info/RECORD", "")
    step = Step("carried", ("carried",), 60, needs=("carried",))
    code, record = run(tmp_path / "with", (step,), "--wheels", str(wheels))
    assert (code, record["steps"]["carried"]["tail"]) == (0, ["carried along"])
    with pytest.raises(SystemExit, match="no wheels in it"):
        run(tmp_path / "without", (step,), "--wheels", str(tmp_path / "with"))


def test_what_is_missing_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "NEEDED", ("json", "no_such_module", "nor_this"))
    assert gpu.main(["--output", str(tmp_path / "out")], (DONE,)) == 2
    line = "missing: no_such_module, nor_this; put their wheels into a folder and give it as --wheels\n"
    assert capsys.readouterr().err == line


def test_the_files_of_the_tests_for_a_gpu_are_found() -> None:
    found = {word for step in STEPS for word in step.command if word.startswith("tests/")} - set(gpu.ALL_TESTS)
    assert {"tests/tuner/test_gpu.py", "tests/integrations/llamafactory/test_liger.py"} <= found
    words = subprocess.run(["git", "grep", "-l", "mark[.]gpu", "tests"], capture_output=True, text=True).stdout.split()
    assert found == {word for word in words if Path(word).name.startswith("test_")} - {"tests/test_gpu_run.py"}


# The others start fresh processes, or keep the process on one core.
TINY = [step for step in STEPS if step.name in ("experts", "whole_step", "analysis", "decode_graph", "decode")]


@pytest.mark.parametrize("step", TINY, ids=lambda step: step.name)
def test_a_benchmark_runs_tiny_and_has_rows_in_the_table(
    step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "result")
    words = [word.replace("{result}", path) for word in (*step.command, *step.tiny)]
    monkeypatch.setattr(sys, "argv", words)
    importlib.import_module(words[0]).main()
    rows = list(READERS[words[0].partition(".")[2]](json.loads(Path(f"{path}.json").read_text())))
    assert rows
    assert all(len(row) == 4 for row in rows)


def test_kernels_are_counted_once_in_a_profile() -> None:
    """A GPU's profile has rows of operations, of the kernels that they launched and of parts that have a name."""
    from torch.autograd import DeviceType

    from benchmarks.training_step import shares

    def row(key: str, device: DeviceType, seconds: float, is_part: bool = False) -> SimpleNamespace:
        of_device = {"self_device_time_total": seconds * 1e6, "self_cpu_time_total": 0.5e6}
        return SimpleNamespace(key=key, device_type=device, is_user_annotation=is_part, **of_device)

    profile = [
        row("aten::mm", DeviceType.CPU, 6),
        row("aten::index_select", DeviceType.CPU, 1),
        row("aten::_index_put_impl_", DeviceType.CPU, 0.5),
        row("autograd::engine", DeviceType.CPU, 0),
        row("Optimizer.step", DeviceType.CPU, 0, True),
        row("sm90_xmma_gemm_bf16", DeviceType.CUDA, 6),
        row("vectorized_gather_kernel", DeviceType.CUDA, 1),
        row("indexing_backward_kernel", DeviceType.CUDA, 0.5),
        row("a kernel that is launched by no operation", DeviceType.CUDA, 1),
        row("Optimizer.step", DeviceType.CUDA, 8.5, True),
    ]
    assert shares(profile, 10, "cuda") == {"math": 0.7, "bookkeeping": 0.15}
    assert shares(profile[:5], 10, "cpu") == {"math": 0.05, "bookkeeping": 0.1}


def test_an_operation_has_the_time_that_it_takes_by_itself() -> None:
    import torch

    from benchmarks.experts import operations

    matrix = torch.ones(400, 400)
    found = operations(lambda: (matrix @ matrix).relu())
    assert next(iter(found)) == "aten::mm"
    assert {"aten::matmul", "aten::relu"} <= set(found)
