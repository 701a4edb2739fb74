"""What `neuronmoe specialise` writes, reads again and replaces, and what an interruption leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from neuronmoe_plugins.corpora import CorpusSpec, parse_corpus_specs
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons import arrays
from neuronmoe_plugins.specialisation import Specialisation, SpecialiseOptions, specialise
from specialisation.extending import EXPERTS, save_adapter, scores_in

FILES = ["routing.png", "specialisation.json", "specialisation.parquet", "specialisation.png"]
RECORD, TABLE = "specialisation.json", "specialisation.parquet"


def test_writes_four_files_and_nothing_else(result: tuple[Specialisation, Path]) -> None:
    folder = result[1]
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    for name in ("routing.png", "specialisation.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG\r\n")


def test_table_has_a_row_per_neuron_and_measured_language(result: tuple[Specialisation, Path]) -> None:
    found, folder = result
    schema = pq.read_schema(folder / TABLE)
    assert {field.name: str(field.type) for field in schema} == {
        "layer": "int32", "expert": "int32", "projection": "string", "unit": "int32", "language": "string",
        "average_precision": "double",
    }  # fmt: skip
    scores = scores_in(folder)
    assert all(0 < score <= 1 for score in scores.values())
    for row in found.experts:
        own = {
            key: score for key, score in scores.items() if (*key[:2], key[4]) == (row.layer, row.expert, row.language)
        }
        if row.high_ap is None:
            assert not own
            continue
        assert sum(score >= 0.9 for score in own.values()) == row.high_ap
        units = {name: {key[3] for key in own if key[2] == name} for name in ("gate_proj", "up_proj", "down_proj")}
        assert units == {"gate_proj": set(range(48)), "up_proj": set(range(48)), "down_proj": set(range(32))}
    assert sum(row.high_ap or 0 for row in found.experts) > 20


def test_loads_as_it_was_returned(result: tuple[Specialisation, Path]) -> None:
    assert Specialisation.load(result[1]) == result[0]


def test_loads_as_it_was_returned_with_a_sentence_in_two_languages(
    options: SpecialiseOptions, corpora: dict[str, Path], tmp_path: Path, without_pictures: None
) -> None:
    for language in ("en", "el"):
        (tmp_path / f"{language}.txt").write_text(corpora[language].read_text(encoding="utf-8") + "\nOK 1", "utf-8")
    specs = parse_corpus_specs([f"{language}={tmp_path / language}.txt" for language in ("en", "el")])
    found = specialise(replace(options, corpora=specs, samples=25, output=tmp_path / "out"))
    assert found.settings["shared_sentences"]["count"] == 1
    assert Specialisation.load(tmp_path / "out") == found


def test_settings_say_how_to_repeat_it(
    result: tuple[Specialisation, Path], options: SpecialiseOptions, corpora: dict[str, Path]
) -> None:
    expected = {
        "model": options.model, "adapter": options.adapter, "model_type": "llama", "num_layers": 4,
        "languages": ["en", "el", "tr"], "threshold": 0.9, "missing": "drop", "min_sentences": 5, "dtype": "float32",
        "device": "cpu", "samples": 24, "seed": 42, "max_tokens": 256, "batch_size": 16,
    }  # fmt: skip
    settings = result[0].settings
    assert {name: settings[name] for name in expected} == expected
    assert [corpus["path"] for corpus in settings["corpora"]] == list(map(str, corpora.values()))
    assert [corpus["sampled"] for corpus in settings["corpora"]] == [24] * 3
    assert [corpus["tokenizer"]["tokens_per_byte"] for corpus in settings["corpora"]] == [1] * 3


def change_record(**changes: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        (folder / RECORD).write_text(json.dumps(record | changes), encoding="utf-8")

    return change


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "is no result of"),
    "no record": (lambda f: (f / RECORD).unlink(), "is no result of"),
    "half a record": (lambda f: (f / RECORD).write_bytes((f / RECORD).read_bytes()[:99]), "is no result of"),
    "a list": (lambda f: (f / RECORD).write_text("[]"), "is no result of"),
    "other rows": (change_record(experts=[{"layer": 1}]), "is no result of"),
    "no table": (lambda f: (f / TABLE).unlink(), "is no result of"),
    "another table": (lambda f: (f / TABLE).write_bytes((f / TABLE).read_bytes() + b"0"), "does not belong to"),
    "another format": (change_record(format=1), "is in format 1, not 2; run `neuronmoe specialise` again"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(result: tuple[Specialisation, Path], tmp_path: Path, kind: str) -> None:
    shutil.copytree(result[1], tmp_path / "out")
    damage, message = DAMAGE[kind]
    damage(tmp_path / "out")
    with pytest.raises(UserError, match=message) as caught:
        Specialisation.load(tmp_path / "out")
    assert str(tmp_path / "out" / RECORD) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_second_run_replaces_and_keeps_other_files(
    result: tuple[Specialisation, Path], options: SpecialiseOptions, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(result[1], output)
    # The drift of an earlier run goes, too: it may be another adapter's.
    for name in (*FILES, "drift.json"):
        (output / name).write_text("stale")
    (output / "notes.txt").write_text("mine")
    (output / "sub").mkdir()
    again = specialise(replace(options, output=output))
    assert again == result[0]
    assert sorted(path.name for path in output.iterdir()) == sorted([*FILES, "notes.txt", "sub"])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (output / "notes.txt").read_text() == "mine"
    assert Specialisation.load(output) == again
    for name in (RECORD, TABLE):
        assert (output / name).read_bytes() == (result[1] / name).read_bytes()
    other = specialise(replace(options, output=output, threshold=0.5))
    assert Specialisation.load(output) == other != again
    assert other.settings["threshold"] == 0.5


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches that are computed from now on; the third ends the program as Ctrl-C does."""
    batches: list[int] = []
    add = arrays.FileStore.add

    def add_and_count(self: arrays.FileStore, batch: int, sentences: Any, pooled: Any) -> None:
        batches.append(batch)
        if batches.count(-1) == 0 and len(batches) == 3:
            raise KeyboardInterrupt
        add(self, batch, sentences, pooled)

    monkeypatch.setattr(arrays.FileStore, "add", add_and_count)
    return batches


@pytest.mark.parametrize("exists", [False, True])
def test_an_interrupted_run_goes_on(
    result: tuple[Specialisation, Path],
    options: SpecialiseOptions,
    computed: list[int],
    exists: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = replace(options, output=tmp_path / "out")
    if exists:
        shutil.copytree(result[1], given.output)
    with pytest.raises(KeyboardInterrupt):
        specialise(given, progress=True)
    assert "Interrupted: the same command goes on from" in capsys.readouterr().err
    if exists:
        assert Specialisation.load(given.output) == result[0]  # the earlier one is whole
    else:
        assert not given.output.exists()
    computed[:] = [-1]
    # What does not change the activations may be another.
    assert specialise(replace(given, missing="zero")).settings["missing"] == "zero"
    assert computed == [-1, 2, 3, 4]
    assert specialise(given) == result[0]
    assert scores_in(given.output) == scores_in(result[1])
    assert sorted(path.name for path in given.output.iterdir()) == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("changed", ["batch_size", "adapter", "weights", "corpus"])
def test_other_activations_start_anew(
    options: SpecialiseOptions, computed: list[int], changed: str, tmp_path: Path, without_pictures: None
) -> None:
    texts = tmp_path / "en.txt"
    shutil.copyfile(str(options.corpora[0].source), texts)
    adapter = tmp_path / "adapter"
    shutil.copytree(options.adapter, adapter)
    specs = (CorpusSpec("en", texts), *options.corpora[1:])
    given = replace(options, output=tmp_path / "out", corpora=specs, adapter=str(adapter))
    with pytest.raises(KeyboardInterrupt):
        specialise(given)
    if changed == "batch_size":
        given = replace(given, batch_size=15)
    elif changed == "corpus":
        texts.write_text(texts.read_text(encoding="utf-8").replace("a", "h"), encoding="utf-8")
    else:
        folder = tmp_path / "other" if changed == "adapter" else adapter
        save_adapter(Path(options.model), folder, EXPERTS, topk=1)
        given = replace(given, adapter=str(folder))
    computed[:] = [-1]
    specialise(given)
    assert computed == [-1, 0, 1, 2, 3, 4]
