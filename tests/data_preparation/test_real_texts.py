"""`neuronmoe data` on real text in four languages, and what the other commands make of its folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from allocations import make_allocation
from data_preparation.preparing import texts_of, write_spec
from neuronmoe_plugins.data import read_manifest
from neuronmoe_plugins.demo.packages import fetch_help
from neuronmoe_plugins.demo.texts import HelpPages, TextSizes
from neuronmoe_plugins.neurons.analysis import Analysis

OTHERS = ("el", "tr", "hu")
ROLES = {"train": "target", "heldout": "held-out", "analysis": "analysis"}
TOKENS, HELD_OUT_BYTES, REPLAYED, SENTENCES = 150_000, 30_000, 60, 120
PAGES = 600
ENGLISH_SHARE = 0.15
"""Of the documents in the files of the other languages."""
MOST_ENGLISH = 0.02
"""Of what is drawn of them."""


@dataclass(frozen=True)
class Corpora:
    """Files of pages, and what is in them.

    Attributes:
        pages: Language -> documents.
        strays: Language -> English documents between them, other ones than those of the English file.
    """

    pages: dict[str, list[str]]
    strays: dict[str, list[str]]


def run(*arguments: object) -> None:
    """Run the command as its users do."""
    command = [sys.executable, "-m", "neuronmoe_plugins", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"}, timeout=600)
    assert done.returncode == 0, (done.stdout, done.stderr)


def write_corpora(folder: Path) -> Corpora:
    """Write `LANGUAGE.jsonl` in the schema of CulturaX."""
    languages = ("en", *OTHERS)
    documents = HelpPages(fetch_help(folder), TextSizes(), seed=22).documents(languages)
    rows = [next(documents) for _ in range(PAGES)]
    pages = {
        language: [unicodedata.normalize("NFC", "\n".join(row[language] for row in page)) for page in rows]
        for language in languages
    }
    count = int(PAGES * ENGLISH_SHARE / (1 - ENGLISH_SHARE))
    strays = {language: pages["en"][number * count : (number + 1) * count] for number, language in enumerate(OTHERS)}
    pages["en"] = pages["en"][len(OTHERS) * count :]
    for language, own in pages.items():
        write_culturax(folder / f"{language}.jsonl", language, [*strays.get(language, []), *own])
    return Corpora(pages, strays)


def write_culturax(path: Path, language: str, texts: Sequence[str]) -> None:
    """Write records with the fields of CulturaX."""
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            url = f"https://help.example.org/{language}/{number}.html"
            record = {"text": text, "timestamp": "2021-04-17T09:42:31Z", "url": url, "source": "mC4"}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def write_help_spec(path: Path, tokenizer: Path) -> Path:
    """All roles in Greek, Turkish and Hungarian; English is replayed and analysed."""
    amounts = {"train": {"tokens": TOKENS}, "heldout": {"bytes": HELD_OUT_BYTES}, "analysis": {"sentences": SENTENCES}}
    limits = {"train": {"min_characters": 100}, "analysis": {"min_characters": 20, "max_characters": 300}}

    def entry(language: str, name: str, role: str, amount: Mapping[str, int]) -> dict[str, Any]:
        filters = {"language": 0.5, **limits.get(name, {})}
        own = {"name": f"{language}_{name}", "language": language, "role": role, "source": f"{language}.jsonl"}
        return {**own, "filters": filters, **amount}

    given = [entry(language, name, ROLES[name], amounts[name]) for language in OTHERS for name in ROLES]
    given += [
        entry("en", "replay", "replay", {"documents": REPLAYED}),
        entry("en", "analysis", "analysis", amounts["analysis"]),
    ]
    return write_spec(path, given, near_duplicates=0.8, tokenizer=str(tokenizer))


@pytest.mark.demo
def test_help_pages_in_four_languages(tiny_model_dir: Path, tmp_path: Path) -> None:
    corpora = write_corpora(tmp_path)
    output = tmp_path / "data"
    run("data", write_help_spec(tmp_path / "spec.yaml", tiny_model_dir), "--output", output, "--workers", 2)
    entries = {entry["name"]: entry for entry in json.loads((output / "manifest.json").read_text())["datasets"]}
    texts = {name: texts_of(output, name) for name in entries}

    check_amounts(entries, texts)
    check_disjoint(corpora, texts)
    check_languages(corpora, entries, texts)
    check_other_commands(output, tiny_model_dir, tmp_path)


def check_amounts(entries: Mapping[str, Any], texts: Mapping[str, list[str]]) -> None:
    """Exact where they can be; of tokens and bytes, the last document completes them."""
    for name, entry in entries.items():
        assert entry["documents"] == len(texts[name])
        # A token of the tiny tokenizer is a byte.
        assert entry["tokens"] == entry["bytes"] == sum(len(text.encode()) for text in texts[name])
    assert entries["en_replay"]["documents"] == REPLAYED
    for language in ("en", *OTHERS):
        assert entries[f"{language}_analysis"]["documents"] == SENTENCES
    for language in OTHERS:
        for name, asked in {"train": TOKENS, "heldout": HELD_OUT_BYTES}.items():
            longest = max(len(text.encode()) for text in texts[f"{language}_{name}"])
            assert asked <= entries[f"{language}_{name}"]["tokens"] < asked + longest


def check_disjoint(corpora: Corpora, texts: Mapping[str, list[str]]) -> None:
    """No document is in two data sets, and every sentence can be of a document that is in none."""
    whole = [text for name, own in texts.items() if not name.endswith("analysis") for text in own]
    assert len(set(whole)) == len(whole)
    for language in ("en", *OTHERS):
        sentences = texts[f"{language}_analysis"]
        assert len(set(sentences)) == len(sentences)
        left = [page for page in (*corpora.pages[language], *corpora.strays.get(language, [])) if page not in whole]
        assert all(any(sentence in page for page in left) for sentence in sentences)


def check_languages(corpora: Corpora, entries: Mapping[str, Any], texts: Mapping[str, list[str]]) -> None:
    """Hardly any of the English that was mixed in is left."""
    for language in OTHERS:
        strays, dropped = corpora.strays[language], 0
        for name in ROLES:
            own, entry = texts[f"{language}_{name}"], entries[f"{language}_{name}"]
            if name == "analysis":
                english = sum(any(text in stray for stray in strays) for text in own)
            else:
                english = len(set(own) & set(strays))
            assert english <= MOST_ENGLISH * len(own), (language, name, english, len(own))
            assert entry["records"] == len(strays) + PAGES
            dropped += entry["passed_over"].get("in another language", 0)
        # As many as were mixed in or more: those that came up for the data sets before come up again.
        assert dropped >= 0.5 * ENGLISH_SHARE * sum(len(texts[f"{language}_{name}"]) for name in ROLES)


def check_other_commands(data: Path, model: Path, folder: Path) -> None:
    """Analysis and training take the folder as it is."""
    options = ["--device", "cpu", "--samples", 60, "--output", folder / "analysis"]
    run("analyze", "--model", model, "--data", data, "--min-score", 0, *options)
    analysis = Analysis.load(folder / "analysis")
    assert analysis.neurons
    assert {corpus["language"] for corpus in analysis.summary["corpora"]} == {"en", *OTHERS}
    replace(make_allocation([2, 1, 1, 2]), targets=list(OTHERS)).save(folder / "allocation.yaml")
    recipe = ["--allocation", folder / "allocation.yaml", "--model", model, "--output", folder / "run"]
    run("recipe", *recipe, "--data", data)
    names = {name: [own.name for own in read_manifest(data).with_role(name)] for name in ("target", "replay")}
    assert names == {"target": [f"{language}_train" for language in OTHERS], "replay": ["en_replay"]}
    stages = [(folder / "run" / f"stage{stage}.yaml").read_text() for stage in (1, 2)]
    assert "dataset: el_train,tr_train,hu_train" in stages[0]
    assert "dataset: en_replay,el_train,tr_train,hu_train" in stages[1]
