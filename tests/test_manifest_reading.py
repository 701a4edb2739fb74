"""`manifest.json` as other commands read it, and what is wrong with one in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_folders import save_data
from neuronmoe_plugins.data.manifest import Manifest, ManifestDataset, read_manifest
from neuronmoe_plugins.errors import UserError

DATASETS = {
    "el_train": ("el", "target", ["α", "β"]),
    "en_replay": ("en", "replay", ["a", "b"]),
    "el_test": ("el", "held-out", ["γ", "δ"]),
    "en_analysis": ("en", "analysis", ["c", "d"]),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_data(tmp_path / "data", DATASETS)


def test_reads_the_data_sets_in_order(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest == Manifest(
        folder,
        tuple(
            ManifestDataset(name, language, role, f"{name}.jsonl", folder, documents=2)
            for name, (language, role, _) in DATASETS.items()
        ),
    )
    assert [dataset.path for dataset in manifest.with_role("target")] == [folder / "el_train.jsonl"]
    assert manifest.path == folder / "manifest.json"


def test_reads_folders_of_parquet_files(tmp_path: Path) -> None:
    folder = save_data(tmp_path / "data", DATASETS, parquet=True)
    assert [dataset.path for dataset in read_manifest(folder).datasets] == [folder / name for name in DATASETS]
    for shard in (folder / "el_test").iterdir():
        shard.unlink()
    with pytest.raises(UserError, match=r"datasets\[2\]: el_test has no file .*el_test; run `neuronmoe data` again$"):
        read_manifest(folder)


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "manifest.json"
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return damage


def entry(**changes: object) -> Callable[[Path], None]:
    return edit(lambda record: record["datasets"][1].update(changes))


AGAIN = "run `neuronmoe data` again"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, r"data holds no data sets \(no manifest\.json\); run `neuronmoe data SPEC.yaml "),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "--output .*data` first$"),
    "half of it": (
        lambda f: (f / "manifest.json").write_text('{"format": 1'),
        rf"manifest\.json is not JSON .*{AGAIN}",
    ),
    "a list": (lambda f: (f / "manifest.json").write_text("[]"), rf"manifest\.json is no manifest .*{AGAIN}"),
    "no format": (edit(lambda record: record.pop("format")), r"manifest\.json: format is None, but .* reads 1; run"),
    "a later format": (edit(lambda record: record.update(format=2)), "format is 2, but"),
    "true": (edit(lambda record: record.update(format=True)), "format is True, but"),
    "no data sets": (edit(lambda record: record.pop("datasets")), rf"datasets must be a list .*{AGAIN}"),
    "empty": (edit(lambda record: record.update(datasets=[])), "datasets must be a list"),
    "a mapping": (edit(lambda record: record.update(datasets={"el": {}})), "datasets must be a list"),
    "a name alone": (edit(lambda r: r["datasets"].insert(0, "el")), rf"datasets\[0\] is 'el', not an object; {AGAIN}"),
    "no name": (entry(name=None), rf"datasets\[1\]\.name is None, not a text; {AGAIN}"),
    "no language": (edit(lambda r: r["datasets"][1].pop("language")), r"datasets\[1\]\.language is None, not a text"),
    "language false": (entry(language=False), r"datasets\[1\]\.language is False, not a text"),
    "no file name": (entry(file_name=""), r"datasets\[1\]\.file_name is '', not a text"),
    "another role": (entry(role="old"), r"\.role is 'old'; there are: held-out, analysis, replay, target; run"),
    "a file elsewhere": (
        entry(file_name="../en.jsonl"),
        r"\.file_name is '\.\./en\.jsonl', which is not below .*data;",
    ),
    "an absolute file": (entry(file_name="/en.jsonl"), r"\.file_name is '/en\.jsonl', which is not below .*data;"),
    "half a document": (entry(documents=0.5), r"datasets\[1\]\.documents is 0\.5, not a number of documents; run"),
    "twice": (entry(name="el_train"), rf"manifest\.json: datasets has el_train twice; {AGAIN}"),
    "no text": (lambda f: (f / "en_replay.jsonl").unlink(), rf"en_replay has no file .*en_replay\.jsonl; {AGAIN}"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(kind: str, folder: Path) -> None:
    damage, message = DAMAGE[kind]
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        read_manifest(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
