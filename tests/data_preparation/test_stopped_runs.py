"""Runs that are killed, interrupted, or end for want of disk, memory or a readable source; and how they go on."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from data_preparation.preparing import (
    ENVIRONMENT,
    SMALL_SHARDS_COMMAND,
    contents,
    prepare,
    run,
)
from data_preparation.worker_jobs import EmptyJob, die, do_nothing
from neuronmoe_plugins.data import workers
from neuronmoe_plugins.errors import UserError


@pytest.mark.parametrize("progress", [0.1, 0.5, 0.9])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(progress: float, corpus: Path, tmp_path: Path) -> None:
    """Kill the command with its workers' parent when so many of all files of its working folder are there."""
    prepare(corpus, tmp_path / "reference")
    command = [*SMALL_SHARDS_COMMAND, str(corpus), "--output", str(tmp_path / "out")]
    whole = 130  # files at the end, about
    process = subprocess.Popen([*command, "--workers", "2"], env=ENVIRONMENT, stderr=subprocess.PIPE)
    partial = tmp_path / "out/.data.partial"
    while process.poll() is None and sum(1 for _ in partial.rglob("*.*")) < progress * whole:
        time.sleep(0.005)
    assert process.poll() is None, "it was over before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in partial.rglob("*.json")}
    done = subprocess.run([*command, "--workers", "1"], env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")
    assert kept


def test_what_was_done_is_not_done_again(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuronmoe_plugins.data import dataset, sources

    def stop(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    real, joined = dataset.assemble_lines, []

    def stop_at_the_last(*arguments: Any) -> None:
        joined.append(arguments)
        if len(joined) == 3:
            stop()
        real(*arguments)

    prepare(corpus, tmp_path / "reference")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dataset, "assemble_lines", stop_at_the_last)
        prepare(corpus, tmp_path / "out")
    for module, name in ((sources, "scan_shard"), (dataset, "examine_rows"), (dataset, "write_shard")):
        monkeypatch.setattr(module, name, stop)
    prepare(corpus, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")


def heed_interrupts() -> None:
    """Tests that run in the background of a shell ignore the signal, and what they start would, too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_interrupted_it_says_how_to_go_on(corpus: Path, tmp_path: Path) -> None:
    command = [*SMALL_SHARDS_COMMAND, str(corpus), "--output", str(tmp_path / "out")]
    process = subprocess.Popen(
        [*command, "--workers", "2"],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )
    while process.poll() is None and not list((tmp_path / "out/.data.partial").rglob("*.npy")):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert f"Interrupted: the same command goes on from {tmp_path / 'out/.data.partial'}" in errors
    assert "Traceback" not in errors
    assert process.returncode not in (0, 2)


INTERRUPT_A_STARTING_WORKER = """\
import os, signal, sys
if "--multiprocessing-fork" in sys.orig_argv:
    os.kill(os.getpid(), signal.SIGINT)
"""


def test_workers_leave_an_interrupt_to_the_command_while_they_start(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPT_A_STARTING_WORKER)
    done = subprocess.run(
        [*SMALL_SHARDS_COMMAND, str(corpus), "--output", str(tmp_path / "out"), "--workers", "2"],
        env=ENVIRONMENT | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=heed_interrupts,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    prepare(corpus, tmp_path / "reference")
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")


def test_an_interrupt_waits_for_the_calls_of_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a call takes locks, which an exception amid it would leave taken."""
    results: list[Any] = []
    real = workers.wait

    def interrupted_wait(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        results.append(real(*arguments))
        return results[-1]

    monkeypatch.setattr(workers, "wait", interrupted_wait)
    pair = workers.Workers(2, Console(file=io.StringIO()))
    with pytest.raises(KeyboardInterrupt), pair.running():
        pair.run(do_nothing, [EmptyJob() for _ in range(100)], [1] * 100, "waiting")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert len(results) == 1


def test_a_full_disk_ends_in_one_line_and_the_same_command_goes_on(corpus: Path, tmp_path: Path) -> None:
    limit = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)); "
        "from neuronmoe_plugins.cli import main; main()"
    )
    command = [sys.executable, "-c", limit, "data", str(corpus), "--output", str(tmp_path / "out"), "--workers", "1"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("neuronmoe: error: ")
    assert line.endswith(f"when this is mended, the same command goes on from {tmp_path / 'out/.data.partial'}")
    assert "File too large" in line
    assert contents(tmp_path / "out") == {}
    assert run(corpus, "--output", tmp_path / "out").returncode == 0
    prepare(corpus, tmp_path / "reference")
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")


def test_stopped_while_it_published_it_goes_on(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuronmoe_plugins.data import output as publishing

    prepare(corpus, tmp_path / "reference")
    real, calls = publishing.write_json, []

    def stop(path: Path, value: object) -> None:
        calls.append(path.name)
        if path.name == "manifest.json":
            raise KeyboardInterrupt
        real(path, value)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(publishing, "write_json", stop)
        prepare(corpus, tmp_path / "out")
    assert calls == ["dataset_info.json", "manifest.json"]
    moved = (tmp_path / "out/el_train.jsonl").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"el_train\.jsonl was there before this run was stopped, and is gone; remove"):
        prepare(corpus, tmp_path / "out")
    moved.rename(tmp_path / "out/el_train.jsonl")
    prepare(corpus, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")


def test_a_source_that_changes_while_it_is_read(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuronmoe_plugins.data import dataset

    real = dataset._write

    def change(*arguments: Any) -> None:
        path = tmp_path / "el.jsonl"
        path.write_text(path.read_text().replace("α", "ω"))
        real(*arguments)

    monkeypatch.setattr(dataset, "_write", change)
    with pytest.raises(UserError, match=r"el\.jsonl was changed while it was read; run the command again"):
        prepare(corpus, tmp_path / "out")
    assert contents(tmp_path / "out") == {}


def test_a_changed_spec_reads_the_same_files_only_once(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuronmoe_plugins.data import sources

    content = corpus.read_text()
    corpus.write_text(content.replace("documents: 1000", "documents: 5000"))
    with pytest.raises(UserError, match=r"el_train: the source has .* documents to draw, and 5,000 were asked for"):
        prepare(corpus, tmp_path / "out")
    corpus.write_text(content)
    with monkeypatch.context() as patch:
        patch.setattr(sources, "scan_shard", lambda job: pytest.fail("it is scanned again"))
        prepare(corpus, tmp_path / "out")
    prepare(corpus, tmp_path / "reference")
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")


def test_errors_of_workers_are_those_of_one_process(corpus: Path, tmp_path: Path) -> None:
    with (tmp_path / "el.jsonl").open("a") as file:
        file.write("{broken\n")
    corpus.write_text(corpus.read_text().replace("role: target", "role: target\n  broken_records: error"))
    done = subprocess.run(
        [*SMALL_SHARDS_COMMAND, str(corpus), "--output", str(tmp_path / "out"), "--workers", "2"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "broken JSON; mend it, or count such records by `broken_records: warn`" in line


def test_a_worker_that_is_killed_is_one_line() -> None:
    pair = workers.Workers(2, Console(file=io.StringIO()))
    with pytest.raises(UserError, match=r"a worker was killed, .* fewer --workers"), pair.running():
        pair.run(die, [EmptyJob(), EmptyJob()], [1, 1], "dying")
