"""Several processes, and an analysis that is killed and goes on: the results are those of one quiet run."""

from __future__ import annotations

import json
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from forking.commands import commands_environment
from neuronmoe_plugins.cli import app
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons import arrays
from neuronmoe_plugins.neurons.processes import Processes, WorkingFolder

OUTPUTS = ("neurons.parquet", "summary.json")
# Saves after every batch, and kills itself after the third.
KILLED = """
import os, signal
from neuronmoe_plugins.neurons import arrays

arrays.SECONDS_BETWEEN_SAVES = 0.0
add, batches = arrays.FileStore.add, []

def add_and_count(self, batch, sentences, pooled):
    add(self, batch, sentences, pooled)
    batches.append(batch)
    if len(batches) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

arrays.FileStore.add = add_and_count
from neuronmoe_plugins.cli import main
main()
"""


@pytest.fixture(scope="module")
def command(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("corpora")
    generator = random.Random(1)
    for language, letters in (("en", "abcdefgh "), ("el", "αβγδεζηθ ")):
        lines = ("".join(generator.choices(letters, k=generator.randint(4, 40))) + "." for _ in range(40))
        (folder / f"{language}.txt").write_text("\n".join(lines))
    corpora = [f"--corpus={language}={folder / language}.txt" for language in ("en", "el")]
    options = ["--samples", "30", "--batch-size", "6", "--measure", "gradient,spectral", "--blocks", "1"]
    return ["analyze", "--model", str(tiny_model_dir), *corpora, *options, "--output"]


def run(command: list[str], output: Path, *more: str) -> Any:
    return CliRunner().invoke(app, [*command, str(output), *more])


@pytest.fixture(scope="module")
def quiet_run(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("quiet") / "analysis"
    assert run(command, output).exit_code == 0
    return output


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches that this process computes from now on."""
    batches: list[int] = []
    add = arrays.FileStore.add

    def add_and_count(self: arrays.FileStore, batch: int, sentences: Any, pooled: Any) -> None:
        add(self, batch, sentences, pooled)
        batches.append(batch)

    monkeypatch.setattr(arrays.FileStore, "add", add_and_count)
    return batches


def assert_same(folder: Path, expected: Path) -> None:
    for name in OUTPUTS:
        assert (folder / name).read_bytes() == (expected / name).read_bytes()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_two_processes_give_the_same_files(
    command: list[str], quiet_run: Path, tmp_path: Path, forked_python: Path
) -> None:
    torchrun = ["torchrun", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [*torchrun, "neuronmoe_plugins", *command, tmp_path / "analysis"],
        env=commands_environment(forked_python),
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.count("Wrote") == 1
    assert_same(tmp_path / "analysis", quiet_run)


def test_killed_analysis_goes_on(
    command: list[str], quiet_run: Path, tmp_path: Path, computed: list[int], forked_python: Path
) -> None:
    output = tmp_path / "analysis"
    program = [forked_python / "python", "-c", KILLED, *command, output]
    killed = subprocess.run(program, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not output.exists()
    assert run(command, output).exit_code == 0
    assert len(computed) == 7  # of ten batches
    assert_same(output, quiet_run)


class Stopping(list[int]):
    """Ends the program as Ctrl-C does at the third batch."""

    def append(self, batch: int) -> None:
        super().append(batch)
        if len(self) == 3:
            raise KeyboardInterrupt


@pytest.fixture
def interrupted(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output of an analysis that was stopped at the third of ten batches."""
    output = tmp_path / "run" / "analysis"
    stopped, add = Stopping(), arrays.FileStore.add
    with monkeypatch.context() as patch:
        patch.setattr(arrays.FileStore, "add", lambda self, n, *rest: (stopped.append(n), add(self, n, *rest)))
        result = run(command, output)
    assert result.exit_code != 0
    message = f"Interrupted: the same command goes on from {output.parent / '.analysis.partial'}"
    assert message in result.stderr.replace("\n", "")
    assert not output.exists()
    return output


@pytest.mark.parametrize(("more", "left"), [([], 8), (["--pooling", "max"], 10)])
def test_interrupted_analysis_goes_on_with_the_same_settings_alone(
    command: list[str], interrupted: Path, computed: list[int], more: list[str], left: int
) -> None:
    computed.clear()
    assert run(command, interrupted, *more).exit_code == 0
    assert len(computed) == left
    assert json.loads((interrupted / "summary.json").read_text())["pooling"] == ("max" if more else "mean")
    assert [path.name for path in interrupted.parent.iterdir()] == ["analysis"]


def test_missing_corpus_in_between_loses_nothing(command: list[str], interrupted: Path, computed: list[int]) -> None:
    assert isinstance(run(command, interrupted, "--corpus", "hu=missing.txt").exception, UserError)
    computed.clear()
    assert run(command, interrupted).exit_code == 0
    assert len(computed) == 8


def test_files_of_the_current_folder_do_not_matter(
    command: list[str], interrupted: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.txt").write_text("new")
    computed.clear()
    assert run(command, interrupted).exit_code == 0
    assert len(computed) == 8


def test_full_memory_or_disk_keeps_what_is_done(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computed: list[int]
) -> None:
    output = tmp_path / "analysis"
    add = arrays.FileStore.add

    def add_two(self: arrays.FileStore, batch: int, *rest: Any) -> None:
        if batch == 2:
            raise torch.OutOfMemoryError
        add(self, batch, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(arrays.FileStore, "add", add_two)
        result = run(command, output)
    assert isinstance(result.exception, UserError)
    assert "--batch-size 6 with sentences of up to 256 tokens does not fit" in str(result.exception)
    computed.clear()
    assert run(command, output).exit_code == 0
    assert len(computed) == 8


def test_one_output_takes_one_analysis_at_a_time(command: list[str], tmp_path: Path) -> None:
    with WorkingFolder(tmp_path / "analysis").locked():
        result = run(command, tmp_path / "analysis")
    assert isinstance(result.exception, UserError)
    assert f"another analysis is writing to --output {tmp_path}" in str(result.exception)
    assert run(command, tmp_path / "analysis").exit_code == 0


def test_output_that_exists_holds_its_unfinished_analysis(command: list[str], tmp_path: Path) -> None:
    """It may be on another disk than the folder around it."""
    (tmp_path / "analysis").mkdir()
    assert WorkingFolder(tmp_path / "analysis").path == tmp_path / "analysis" / ".partial"
    assert run(command, tmp_path / "analysis").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "analysis").iterdir()) == [
        "neurons.parquet", "neurons.png", "summary.json"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--device", "auto"], "--device auto under torchrun would put every process on the same devices"),
        (["--memory-limit", "1"], "--memory-limit has no effect under torchrun"),
    ],
)
def test_what_several_processes_cannot_take(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], message: str
) -> None:
    monkeypatch.setattr(Processes, "from_environment", classmethod(lambda cls: Processes(0, 2, 0)))
    monkeypatch.setattr(Processes, "wait_for_all", lambda self: None)
    with pytest.raises(UserError, match=message):
        raise run(command, tmp_path / "analysis", *more).exception


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


def test_processes_are_those_of_torchrun_alone() -> None:
    assert Processes.from_environment({"RANK": "1", "WORLD_SIZE": "2"}) == Processes()
    second = Processes.from_environment(TORCHRUN)
    assert second == Processes(1, 2, 1)
    assert not second.is_first
    assert second.share([0, 1, 2, 3, 4]) == [1, 3]


def test_several_machines_are_refused() -> None:
    with pytest.raises(UserError, match="several machines"):
        Processes.from_environment(TORCHRUN | {"LOCAL_WORLD_SIZE": "1"})
