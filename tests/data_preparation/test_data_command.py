"""The command as its users run it: killed, interrupted, without room on the disk, repeated, and in their folders."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data_preparation.preparing import entry_of, prepare, texts_of, write_jsonl, write_spec
from neuronmoe_plugins.data import read_manifest
from neuronmoe_plugins.errors import UserError

ENVIRONMENT = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
# As the installed command, whatever is on the path.
COMMAND = [sys.executable, "-c", "from neuronmoe_plugins.cli import main; main()", "data"]
SMALL_SHARDS = (
    "from neuronmoe_plugins.data import shards; shards.cut_file.__defaults__ = (20_000,); "
    "from neuronmoe_plugins.cli import main; main()"
)


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120, **options)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A spec of three data sets from 2,000 Greek-looking documents, many of them twice."""
    generator = random.Random(1)
    texts = ["".join(generator.choices("αβγδ εζη.", k=generator.randrange(20, 900))) for _ in range(1500)]
    write_jsonl(tmp_path / "el.jsonl", texts + texts[:500])
    given = [
        {"documents": 1000},
        {"name": "el_analysis", "role": "analysis", "sentences": 100},
        {"name": "el_heldout", "role": "held-out", "bytes": "20k"},
    ]
    return write_spec(tmp_path / "spec.yaml", given)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_it_writes_what_llamafactory_reads_and_says_so(corpus: Path, tmp_path: Path) -> None:
    done = run(corpus, "--output", tmp_path / "out", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == f"Wrote {tmp_path / 'out'}"
    (row,) = (line for line in done.stdout.splitlines() if "el_train" in line)
    assert row.replace("│", " ").split()[:4] == ["el_train", "el", "target", "1,000"]
    assert json.loads((tmp_path / "out/dataset_info.json").read_text()) == {
        name: {"file_name": f"{name}.jsonl", "columns": {"prompt": "text"}, "language": "el"}
        for name in ("el_train", "el_analysis", "el_heldout")
    }
    roles = {dataset.name: dataset.role for dataset in read_manifest(tmp_path / "out").datasets}
    assert roles == {"el_train": "target", "el_analysis": "analysis", "el_heldout": "held-out"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("progress", [0.1, 0.5, 0.9])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(progress: float, corpus: Path, tmp_path: Path) -> None:
    """Kill the command with its workers' parent when so many of all files of its working folder are there."""
    prepare(corpus, tmp_path / "reference")
    command = [sys.executable, "-c", SMALL_SHARDS, "data", str(corpus), "--output", str(tmp_path / "out")]
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


def test_interrupted_it_says_how_to_go_on(corpus: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SMALL_SHARDS, "data", str(corpus), "--output", str(tmp_path / "out")]
    process = subprocess.Popen(
        [*command, "--workers", "2"],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that run in the background of a shell ignore the signal, and what they start would, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not list((tmp_path / "out/.data.partial").rglob("*.npy")):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert f"Interrupted: the same command goes on from {tmp_path / 'out/.data.partial'}" in errors
    assert "Traceback" not in errors
    assert process.returncode not in (0, 2)


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


def test_repeated_it_does_nothing(corpus: Path, tmp_path: Path) -> None:
    assert prepare(corpus, tmp_path / "out").is_new
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert not prepare(corpus, tmp_path / "out", workers=2).is_new
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    # A file that is no longer whole is made again, if that is wanted.
    (tmp_path / "out/el_train.jsonl").write_text("")
    done = run(corpus, "--output", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith(f"neuronmoe: error: {tmp_path / 'out/el_train.jsonl'} is there already; ")
    assert prepare(corpus, tmp_path / "out", force=True).is_new
    assert len(texts_of(tmp_path / "out")) == 1000


def test_changed_specs_and_sources_need_force(corpus: Path, tmp_path: Path) -> None:
    prepare(corpus, tmp_path / "out")
    corpus.write_text(corpus.read_text().replace("documents: 1000", "documents: 900"))
    done = run(corpus, "--output", tmp_path / "out")
    assert (done.returncode, len(texts_of(tmp_path / "out"))) == (2, 1000)
    assert "is there already; replace it by --force, rename the data set, or name another folder" in done.stderr
    assert run(corpus, "--output", tmp_path / "out", "--force").returncode == 0
    assert len(texts_of(tmp_path / "out")) == 900
    write_jsonl(tmp_path / "el.jsonl", [f"κείμενο {number}." for number in range(5000)])
    assert run(corpus, "--output", tmp_path / "out").returncode == 2


def test_foreign_files_and_entries_are_left_alone(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    own = {"file_name": "el_train.jsonl", "columns": {"prompt": "text"}, "language": "el", "num_samples": 7}
    foreign = {"alpaca": {"file_name": "alpaca.json", "formatting": "sharegpt"}, "el_train": own}
    (output / "dataset_info.json").write_text(json.dumps(foreign))
    (output / "alpaca.json").write_text("[]")
    prepare(corpus, output)
    info = json.loads((output / "dataset_info.json").read_text())
    assert {name: info[name] for name in foreign} == foreign
    assert list(info) == ["alpaca", "el_train", "el_analysis", "el_heldout"]
    assert (output / "alpaca.json").read_text() == "[]"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("el_train.jsonl", "mine", "el_train.jsonl is there already; "),
        (
            "dataset_info.json",
            '{"el_train": {"file_name": "x.json"}}',
            "dataset_info.json has another entry el_train; ",
        ),
        ("dataset_info.json", "{broken", "dataset_info.json is not JSON "),
        ("manifest.json", "{broken", "manifest.json is not JSON "),
    ],
)
def test_what_others_wrote_is_refused(name: str, content: str, message: str, corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / name).write_text(content)
    done = run(corpus, "--output", output)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert message in line
    assert contents(output) == {name: content.encode()}


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


def test_two_at_once_are_refused(corpus: Path, tmp_path: Path) -> None:
    from neuronmoe_plugins.data.workspace import Workspace

    with Workspace(tmp_path / "out").locked():
        done = run(corpus, "--output", tmp_path / "out")
    assert done.returncode == 2
    assert f"another run is writing to --output {tmp_path / 'out'}; wait for it" in done.stderr


def test_parquet_shards(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    from neuronmoe_plugins.data import writing

    monkeypatch.setattr(writing, "PARQUET_DOCUMENTS", 300)
    prepare(corpus, tmp_path / "lines")
    corpus.write_text(corpus.read_text() + "format: parquet\n")
    prepared = prepare(corpus, tmp_path / "out")
    files = sorted((tmp_path / "out/el_train").iterdir())
    assert [path.name for path in files] == [f"{number:05}.parquet" for number in range(4)]
    texts = [text for path in files for text in pq.read_table(path)["text"].to_pylist()]
    assert texts == texts_of(tmp_path / "lines")
    names = [output["file_name"] for output in entry_of(prepared)["output"]]
    assert names == [f"el_train/{path.name}" for path in files]
    assert not prepare(corpus, tmp_path / "out").is_new


def test_bad_input_is_one_line_and_exit_code_2(corpus: Path, tmp_path: Path) -> None:
    for arguments, message in {
        (tmp_path / "none.yaml", "--output", tmp_path / "out"): "none.yaml cannot be read: No such file",
        (corpus, "--output", tmp_path / "out", "--workers", 0): "--workers is 0; it must be at least 1",
        (corpus, "--output", corpus): f"--output {corpus} cannot be written: ",
    }.items():
        done = run(*arguments)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("neuronmoe: error: ")
        assert message in line


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


def test_another_spec_in_the_same_folder_needs_force(corpus: Path, tmp_path: Path) -> None:
    prepare(corpus, tmp_path / "out")
    other = write_spec(tmp_path / "other.yaml", [{"name": "el_more", "documents": 5}])
    with pytest.raises(UserError, match=r"manifest\.json is of another specification"):
        prepare(other, tmp_path / "out")
    prepare(other, tmp_path / "out", force=True)
    assert len(texts_of(tmp_path / "out", "el_more")) == 5
    assert len(texts_of(tmp_path / "out")) == 1000


def test_a_source_is_not_written_over(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "el_train.jsonl", ["ένα", "δύο"])
    spec = write_spec(tmp_path / "spec.yaml", [{"source": "*.jsonl", "documents": 1}])
    with pytest.raises(UserError, match=r"el_train\.jsonl is where el_train is written; name another --output"):
        prepare(spec, tmp_path, force=True)
    assert (tmp_path / "el_train.jsonl").read_text().count("\n") == 2


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
        [sys.executable, "-c", SMALL_SHARDS, "data", str(corpus), "--output", str(tmp_path / "out"), "--workers", "2"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "broken JSON; mend it, or count such records by `broken_records: warn`" in line


def test_a_worker_that_is_killed_is_one_line() -> None:
    import io

    from rich.console import Console

    from data_preparation.dying import DyingJob, die
    from neuronmoe_plugins.data.workers import Workers

    workers = Workers(2, Console(file=io.StringIO()))
    with pytest.raises(UserError, match=r"a worker was killed, .* fewer --workers"), workers.running():
        workers.run(die, [DyingJob(), DyingJob()], [1, 1], "dying")
