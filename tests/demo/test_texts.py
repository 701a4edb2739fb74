"""Help pages -> parallel, disjoint texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neuronmoe_plugins.demo.packages import udhr_text
from neuronmoe_plugins.demo.texts import (
    REPLAY,
    REVIEW,
    TRAIN,
    HelpSplit,
    TextSizes,
    align_paragraphs,
    page_paragraphs,
    split_help,
    write_split,
)
from neuronmoe_plugins.errors import UserError

LANGUAGES = ("en", "el", "tr")
SIZES = TextSizes(
    heldout_characters=300,
    analysis_sentences=5,
    replay_characters=300,
    train_characters=600,
    review_characters=150,
    min_paragraph=10,
    max_sentence=60,
    max_document=80,
)


def html_page(paragraphs: dict[str, str]) -> str:
    body = "".join(f'<p id="{name}" class="paragraph">{text}</p>' for name, text in paragraphs.items())
    return f'<html><body><p id="outside">menu</p><div id="DisplayArea">{body}</div><p id="after">end</p></body></html>'


def write_pages(folder: Path, pages: int = 60) -> dict[str, Path]:
    """Pages of three paragraphs of their own, one that all pages embed, and one that is not translated."""
    folders = {language: folder / language for language in LANGUAGES}
    for language, path in folders.items():
        for number in range(pages):
            paragraphs = {f"id{i}": f"{language} page {number} paragraph {i}" for i in range(3)}
            paragraphs["shared"] = f"{language} is embedded in every page"
            paragraphs["same"] = f"page {number}, untranslated everywhere"
            page = path / "sub" / f"{number}.html"
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(html_page(paragraphs), encoding="utf-8")
    return folders


def purposes(split: HelpSplit) -> dict[str, list[str]]:
    """Purpose and language -> its paragraphs."""
    documents = {f"heldout_{language}": texts for language, texts in split.heldout.items()}
    documents |= {f"analysis_{language}": texts for language, texts in split.analysis.items()}
    documents |= {"replay": split.replay, "train": split.train["el"]}
    return {name: [line for text in texts for line in text.split("\n")] for name, texts in documents.items()}


def page_numbers(paragraphs: list[str]) -> set[str]:
    return {line.split()[2] for line in paragraphs if " page " in line}


def test_only_the_display_area_is_read_and_markup_is_dropped() -> None:
    html = html_page({"a": "Choose  <b>Format</b> -\n<i>Page</i>.", "b": 'See <a href="x">this</a>'})

    assert page_paragraphs(html) == {"a": "Choose Format - Page.", "b": "See this"}


def test_rows_are_aligned_by_id_and_need_a_long_enough_translation() -> None:
    pages = {
        "en": {"a": "one long text", "b": "untranslated text", "c": "short", "d": "not in Greek", "e": "another text"},
        "el": {"e": "άλλο κείμενο", "a": "ένα κείμενο", "b": "untranslated text", "c": "κείμενο μακρύ"},
    }

    assert align_paragraphs(pages, min_characters=6) == [
        {"en": "one long text", "el": "ένα κείμενο"},
        {"en": "another text", "el": "άλλο κείμενο"},
    ]


def test_no_page_and_no_paragraph_serves_two_purposes(tmp_path: Path) -> None:
    texts = purposes(split_help(write_pages(tmp_path), SIZES, seed=1))

    groups = [
        texts["heldout_en"] + texts["heldout_el"],
        texts["analysis_en"] + texts["analysis_el"] + texts["analysis_tr"],
        texts["replay"],
        texts["train"],
    ]
    for index, group in enumerate(groups):
        for other in groups[index + 1 :]:
            assert page_numbers(group).isdisjoint(page_numbers(other))
            assert set(group).isdisjoint(other)
    assert all(len(lines) == len(set(lines)) for lines in texts.values())
    # The replay is not compared with a translation, so only there may it stand.
    assert not any("untranslated" in line for name in texts for line in texts[name] if name != "replay")


def test_each_purpose_has_its_languages_and_size(tmp_path: Path) -> None:
    split = split_help(write_pages(tmp_path), SIZES, seed=1)
    texts = purposes(split)

    for name, lines in texts.items():
        language = {"replay": "en", "train": "el"}.get(name, name.split("_")[-1])
        own = [line for line in lines if "untranslated" not in line]
        assert own
        assert all(line.startswith(language) for line in own), name
    assert sum(map(len, split.heldout["el"])) >= SIZES.heldout_characters
    assert sum(map(len, split.train["el"])) >= SIZES.train_characters
    assert {language: len(lines) for language, lines in split.analysis.items()} == dict.fromkeys(LANGUAGES, 5)
    assert [line[2:] for line in split.analysis["en"]] == [line[2:] for line in split.analysis["tr"]]
    assert max(map(len, split.train["el"])) <= SIZES.max_document


def test_targets_are_trained_on_texts_that_say_the_same(tmp_path: Path) -> None:
    split = split_help(write_pages(tmp_path), SIZES, seed=1, targets=("el", "tr"))

    assert set(split.heldout) == {"en", "el", "tr"}
    assert set(split.train) == {"el", "tr"}
    assert [text.replace("el", "tr") for text in split.train["el"]] == split.train["tr"]


def test_the_seed_decides_the_split(tmp_path: Path) -> None:
    folders = write_pages(tmp_path)

    assert split_help(folders, SIZES, seed=1) == split_help(folders, SIZES, seed=1)
    assert split_help(folders, SIZES, seed=1).train != split_help(folders, SIZES, seed=2).train


def test_too_few_pages_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="6 help pages do not hold enough text in en, el"):
        split_help(write_pages(tmp_path, pages=6), SIZES, seed=1)
    with pytest.raises(UserError, match="no help page is in all of"):
        split_help({"en": tmp_path / "none"}, SIZES, seed=1)


def test_files_and_tags_are_those_that_the_commands_read(tmp_path: Path) -> None:
    split = split_help(write_pages(tmp_path / "pages"), SIZES, seed=1)

    write_split(split, {"en": "All human beings", "el": "'Ολοι οι άνθρωποι"}, SIZES.review_characters, tmp_path / "out")

    info = json.loads((tmp_path / "out/train/dataset_info.json").read_text(encoding="utf-8"))
    assert {name: entry["language"] for name, entry in info.items()} == {TRAIN: "new", REVIEW: "new", REPLAY: "old"}
    lines = {
        name: (tmp_path / "out/train" / entry["file_name"]).read_text(encoding="utf-8").splitlines()
        for name, entry in info.items()
    }
    assert [json.loads(line)["text"] for line in lines[TRAIN]] == split.train["el"]
    assert 0 < len(lines[REVIEW]) < len(lines[TRAIN])
    assert lines[REVIEW] == lines[TRAIN][: len(lines[REVIEW])]
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.jsonl")}
    assert names == {
        *(f"analysis/{language}.jsonl" for language in LANGUAGES),
        *(f"heldout/{kind}_{language}.jsonl" for kind in ("help", "udhr") for language in ("en", "el")),
        *(f"train/{name}.jsonl" for name in (TRAIN, REVIEW, REPLAY)),
    }


def test_udhr_pages_become_lines() -> None:
    html = "<html><head><title>t</title></head><body><h1>Title </h1><p>Article\n1</p><ol><li><p>x</p></li></ol></body>"

    assert udhr_text(html) == "Title\nArticle 1\nx"
