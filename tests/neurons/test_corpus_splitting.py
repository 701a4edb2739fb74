"""Splitting texts into sentences: the rules of each language, names with sentence numbers, and unknown languages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neuronmoe_plugins.corpora import CorpusSpec, Sentence, sample_corpus
from neuronmoe_plugins.corpora.samples import sentence_splitter
from neuronmoe_plugins.errors import UserError

TEXTS = {
    "en": ["Dr. Brown came at five.", "Was she late?", "Not at all, e.g. by the clock of Mr. Hill!"],
    # The semicolon is the Greek question mark.
    "el": ["Πού ήσουν χθες;", "Ο κ. Νίκου ρώτησε πολλά, π.χ. για τη βροχή.", "Δεν ήξερα τι να πω!"],
    "tr": ["Kapıyı kim çaldı?", "Dr. Kaya erkenden geldi.", "Hava çok güzeldi!"],
    "hu": ["Ki kopogott az ajtón?", "Dr. Szabó korán jött.", "Nagyon szép idő volt!"],
    "zh": ["你昨天去哪里了？", "我在家。"],
}


def split(language: str, text: str) -> list[str]:
    return [sentence.text for sentence in sentence_splitter(language)(Sentence(text, "a.txt:1"))]


@pytest.mark.parametrize("language", TEXTS)
def test_rules_of_the_language(language: str) -> None:
    assert split(language, "  ".join(TEXTS[language])) == TEXTS[language]


def test_greek_question_mark_is_greek_only() -> None:
    text = "Πού ήσουν χθες; Δεν ήξερα τι να πω."
    assert len(split("el", text)) == 2
    assert split("en", text) == [text]


@pytest.mark.parametrize("name", ["ell", "gre_GR", "EL", "el-GR", "el_GR", "el-cyprus"])
def test_code_at_the_beginning_of_the_name(name: str) -> None:
    assert split(name, " ".join(TEXTS["el"])) == TEXTS["el"]


@pytest.mark.parametrize("name", ["old", "new", "greek", "grc", "xx", "e-l"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' is no language code, by which .*ISO 639-1"):
        sentence_splitter(name)


def test_paragraphs_give_no_blank_sentence() -> None:
    assert split("en", "One.\n\n \n\nTwo") == ["One.", "Two"]


def test_sampling_split_texts(tmp_path: Path) -> None:
    path = tmp_path / "el.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in ["", " ".join(TEXTS["el"]), "Ναι."]))
    corpus = sample_corpus(CorpusSpec("el", path), 4, seed=1, split_sentences=True)
    assert [sentence.text for sentence in corpus.sentences] == [*TEXTS["el"], "Ναι."]
    assert corpus.names() == [f"{path}:{place}" for place in ("2#1", "2#2", "2#3", "3#1")]
    assert corpus.available == corpus.files[0].sentences == 4
    assert sample_corpus(CorpusSpec("el", path), 2, seed=1).names() == [f"{path}:2", f"{path}:3"]
