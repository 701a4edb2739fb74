"""Specs: what they say, and one line for everything that they cannot say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_preparation.preparing import write_spec
from neuronmoe_plugins.corpora import HubDataset
from neuronmoe_plugins.data.spec import Amount, Filters, LocalFiles, load_spec
from neuronmoe_plugins.errors import UserError


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1000, 1000),
        ("2e9", 2 * 10**9),
        (2e9, 2 * 10**9),
        ("50_000", 50_000),
        ("50,000", 50_000),
        ("2B", 2 * 10**9),
        ("1.5 GB", 1_500_000_000),
        ("500k", 500_000),
        ("10MB", 10**7),
        ("3t", 3 * 10**12),
        ("9007199254740993", 9007199254740993),
        ("7 b", 7 * 10**9),
        ("all", None),
    ],
)
def test_amounts(value: object, number: int | None) -> None:
    assert Amount.parse("tokens", value) == Amount("tokens", number)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "", "many", "nan", "inf", "1e-3", "2X", None, [1], "0"])
def test_amounts_that_are_none(value: object) -> None:
    with pytest.raises(ValueError, match="must be a whole number from 1 on, such as 50000, 2B or 10MB, or all; got"):
        Amount.parse("documents", value)


def test_everything_that_a_spec_can_say(tmp_path: Path) -> None:
    datasets: list[dict[str, Any]] = [
        {
            "source": ["a/*.jsonl", "b.txt"],
            "text": "content",
            "filters": {"min_characters": 10, "max_characters": 100, "language": 0.5},
            "tokens": "2B",
            "broken_records": "error",
            "unreadable_files": "warn",
            "shortage": "warn",
        },
        {"name": "en", "source": "hub:a/b:en@dev[:20]", "documents": 5, "role": "replay", "language": "en"},
        {"name": "es", "source": "hub:a/b", "config": "es", "split": "s", "rows": 7, "revision": "v1", "bytes": 9},
        {"name": "zh", "source": "hub:a/b", "sentences": 9, "role": "analysis"},
    ]
    top = {"normalise": "NFKC", "near_duplicates": 0.8, "tokenizer": "some/model", "format": "parquet"}
    spec = load_spec(write_spec(tmp_path / "spec.yaml", datasets, **top))
    assert (spec.seed, spec.normalise, spec.near_duplicates, spec.tokenizer, spec.format) == (22, *top.values())
    el, en, es, zh = spec.datasets
    assert el.source == LocalFiles(("a/*.jsonl", "b.txt"))
    assert (el.name, el.language, el.role, el.text) == ("el_train", "el", "target", "content")
    assert el.filters == Filters(10, 100, 0.5)
    assert el.amount == Amount("tokens", 2 * 10**9)
    assert (el.broken_records, el.unreadable_files, el.shortage) == ("error", "warn", "warn")
    assert en.source == HubDataset("a/b", "en", "dev", 20)
    assert (es.source, es.revision) == (HubDataset("a/b", "es", "s", 7), "v1")
    assert zh.source == HubDataset("a/b", None, "train", None)
    assert (zh.broken_records, zh.unreadable_files, zh.shortage) == ("warn", "error", "error")
    assert [dataset.name for dataset in spec.in_order()] == ["zh", "en", "el_train", "es"]


GOOD = {"documents": 1}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({**GOOD, "langauge": "el"}, r"unknown key 'langauge': did you mean language\?"),
    "no such key": ({**GOOD, "xyz": 1}, r"unknown key 'xyz'; there are: name, language, role, source, "),
    "no amount": ({}, "exactly one of documents, sentences, bytes, tokens must say how much; it has none"),
    "two amounts": ({**GOOD, "bytes": 3}, "must say how much; it has documents and bytes"),
    "bad amount": ({"documents": "lots"}, r"documents: must be a whole number from 1 on.*got 'lots'"),
    "role": ({**GOOD, "role": "train"}, "role: must be one of held-out, analysis, replay, target; got 'train'"),
    "near role": ({**GOOD, "role": "targets"}, r"got 'targets': did you mean target\?"),
    "no name": ({**GOOD, "name": None}, r"datasets\[0\]: name is missing"),
    "bad name": ({**GOOD, "name": "../x"}, "name: must be a file's name .*; got '../x'"),
    "language": ({**GOOD, "language": "e l"}, "language: must be a language code such as el; got 'e l'"),
    "no code": ({**GOOD, "language": "greek"}, "language: must be a language code such as el; got 'greek'"),
    "norwegian": ({**GOOD, "language": False}, "got False; put it in quotes"),
    "no source": ({**GOOD, "source": None}, "source is missing"),
    "source": ({**GOOD, "source": 3}, "source: must be hub:OWNER/NAME, or a path or glob, or a list of these; got 3"),
    "hub": ({**GOOD, "source": "hub:name"}, r"source: 'hub:name' is not hub:OWNER/NAME\[:CONFIG\]"),
    "hub twice": ({**GOOD, "source": "hub:a/b:el", "config": "el"}, "config: 'hub:a/b:el' has it already; say it once"),
    "rows": ({**GOOD, "source": "hub:a/b", "rows": 0}, "rows: must be a whole number from 1 on; got 0"),
    "split of files": ({**GOOD, "split": "dev"}, "split: it is for sources that begin with hub:"),
    "tokens": ({"tokens": 5}, "el_train asks for tokens; say by `tokenizer:` which model's"),
    "filters": ({**GOOD, "filters": {"minimum": 3}}, r"filters: unknown key 'minimum'"),
    "no filters": ({**GOOD, "filters": [1]}, "filters: must be a mapping with min_characters, .*; got list"),
    "limits": ({**GOOD, "filters": {"min_characters": 9, "max_characters": 3}}, "it is larger than max_characters"),
    "probability": ({**GOOD, "filters": {"language": 1.5}}, "must be a number above 0 and at most 1; got 1.5"),
    "shortage": ({**GOOD, "shortage": "ignore"}, "shortage: must be one of error, warn; got 'ignore'"),
    "text": ({**GOOD, "text": 5}, "text: must be a text; got 5"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_sets(case: str, tmp_path: Path) -> None:
    dataset, message = WRONG[case]
    path = write_spec(tmp_path / "spec.yaml", [dataset])
    with pytest.raises(UserError, match=message) as error:
        load_spec(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


TOP: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": None}, "seed is missing"),
    "bad seed": ({"seed": "x"}, "seed: must be a whole number from 0 on; got 'x'"),
    "form": ({"normalise": "NFX"}, "normalise: must be one of NFC, NFKC, none; got 'NFX'"),
    "near": ({"near_duplicates": 1}, "near_duplicates: must be a number above 0 and below 1; got 1"),
    "format": ({"format": "csv"}, "format: must be one of jsonl, parquet; got 'csv'"),
    "unknown": ({"sede": 3}, r"unknown key 'sede': did you mean seed\?"),
    "empty": ({"datasets": []}, "datasets must be a list of data sets"),
    "no list": ({"datasets": {"a": 1}}, "datasets must be a list of data sets"),
    "no entry": ({"datasets": ["a"]}, r"datasets\[0\]: must be a mapping with name, .*; got str"),
}


@pytest.mark.parametrize("case", TOP)
def test_wrong_specs(case: str, tmp_path: Path) -> None:
    top, message = TOP[case]
    with pytest.raises(UserError, match=message):
        load_spec(write_spec(tmp_path / "spec.yaml", [GOOD], **top))


def test_files_that_are_no_spec(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    with pytest.raises(UserError, match=r"spec\.yaml cannot be read: No such file or directory"):
        load_spec(path)
    for content, message in {
        b"a: [": r"spec\.yaml is no YAML: ",
        b"\xff": r"spec\.yaml: not UTF-8 text",
        b"": "must be a mapping with seed, datasets, .*; got NoneType",
        b"seed: 1": "datasets is missing",
        b"!!python/object/apply:os.getcwd []": "is no YAML",
    }.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            load_spec(path)
        assert "\n" not in str(error.value)


def test_two_data_sets_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two data sets are called el_train; every name is a file's"):
        load_spec(write_spec(tmp_path / "spec.yaml", [GOOD, GOOD]))
