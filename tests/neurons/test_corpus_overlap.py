"""Sentences in more than one language are counted; languages with the same text are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from neuronmoe_plugins.corpora import (
    Corpus,
    CorpusSpec,
    Sentence,
    SharedPair,
    require_distinct_corpora,
    sample_corpus,
    shared_sentences,
)
from neuronmoe_plugins.errors import UserError

ReadAll = Callable[[dict[str, str]], list[Corpus]]


@pytest.fixture
def read_all(tmp_path: Path) -> ReadAll:
    def read(contents: dict[str, str]) -> list[Corpus]:
        """A corpus of all lines per language."""
        for language, content in contents.items():
            (tmp_path / f"{language}.txt").write_text(content)
        return [
            sample_corpus(CorpusSpec(language, tmp_path / f"{language}.txt"), len(content.split()), seed=1)
            for language, content in contents.items()
        ]

    return read


def test_counts_different_sentences_by_pair(read_all: ReadAll) -> None:
    corpora = read_all({"en": "a\nb\na\nc\nd\n", "el": "b\nx\na\nd\nc\n", "tr": "a\ny\n", "hu": "z\n"})
    shared = shared_sentences(corpora)
    assert shared.count == 4
    assert shared.pairs == (
        SharedPair(("en", "el"), 4, ("a", "b", "c")),
        SharedPair(("en", "tr"), 1, ("a",)),
        SharedPair(("el", "tr"), 1, ("a",)),
    )
    require_distinct_corpora(corpora)


def test_nothing_shared(read_all: ReadAll) -> None:
    shared = shared_sentences(read_all({"en": "a\n", "el": "b\n"}))
    assert (shared.count, shared.pairs) == (0, ())


def test_white_space_around_makes_no_difference() -> None:
    one, other = (
        Corpus(language, language, language, 1, (Sentence(text, "1"), Sentence(language, "2")), ())
        for language, text in (("en", " a"), ("el", "a"))
    )
    assert shared_sentences([one, other]).count == 1


def test_same_sentences_are_refused(read_all: ReadAll) -> None:
    with pytest.raises(UserError, match=r"el\.txt of el and \S*tr\.txt of tr: all sampled sentences are the same"):
        require_distinct_corpora(read_all({"en": "a\nc\n", "el": "a\nb\n", "tr": "b\na\nb\n"}))


def test_files_of_the_same_content_are_refused(tmp_path: Path) -> None:
    for name in ("en/1.txt", "en/2.txt", "el/1.txt", "el/2.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("" if name == "en/1.txt" else f"{name}\n" * 99)
    (tmp_path / "el" / "2.txt").write_text("")
    corpora = [sample_corpus(CorpusSpec(language, tmp_path / language), 3, seed=1) for language in ("en", "el")]
    require_distinct_corpora(corpora)  # both have an empty file
    (tmp_path / "el" / "2.txt").write_bytes((tmp_path / "en" / "2.txt").read_bytes())
    corpora[1] = sample_corpus(CorpusSpec("el", tmp_path / "el"), 3, seed=1)
    with pytest.raises(UserError, match=r"en/2\.txt of en and \S*el/2\.txt of el have the same content"):
        require_distinct_corpora(corpora)
