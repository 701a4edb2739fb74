"""The command as its users run it, in their folders: what it writes, repeats and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_preparation.preparing import (
    contents,
    entry_of,
    prepare,
    run,
    run_here,
    texts_of,
    write_jsonl,
    write_spec,
)
from neuronmoe_plugins.data import read_manifest
from neuronmoe_plugins.errors import UserError


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


def test_repeated_it_does_nothing(corpus: Path, tmp_path: Path) -> None:
    assert prepare(corpus, tmp_path / "out").is_new
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert not prepare(corpus, tmp_path / "out", workers=2).is_new
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    # A file that is no longer whole is made again, if that is wanted.
    (tmp_path / "out/el_train.jsonl").write_text("")
    done = run_here(corpus, "--output", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith(f"neuronmoe: error: {tmp_path / 'out/el_train.jsonl'} is there already; ")
    assert prepare(corpus, tmp_path / "out", force=True).is_new
    assert len(texts_of(tmp_path / "out")) == 1000


def test_changed_specs_and_sources_need_force(corpus: Path, tmp_path: Path) -> None:
    prepare(corpus, tmp_path / "out")
    corpus.write_text(corpus.read_text().replace("documents: 1000", "documents: 900"))
    done = run_here(corpus, "--output", tmp_path / "out")
    assert (done.returncode, len(texts_of(tmp_path / "out"))) == (2, 1000)
    assert "is there already; replace it by --force, rename the data set, or name another folder" in done.stderr
    assert run_here(corpus, "--output", tmp_path / "out", "--force").returncode == 0
    assert len(texts_of(tmp_path / "out")) == 900
    write_jsonl(tmp_path / "el.jsonl", [f"κείμενο {number}." for number in range(5000)])
    assert run_here(corpus, "--output", tmp_path / "out").returncode == 2


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
    done = run_here(corpus, "--output", output)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert message in line
    assert contents(output) == {name: content.encode()}


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
        (corpus, "--output", corpus): f"--output {corpus} is a file; name a folder",
    }.items():
        done = run_here(*arguments)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("neuronmoe: error: ")
        assert message in line


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
