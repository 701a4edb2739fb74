"""Help pages -> parallel paragraphs -> disjoint texts for analysis, training, replay and evaluation."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from bs4 import BeautifulSoup, SoupStrainer

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import new_directory, write_json, write_texts

SOURCE = "en"
TARGET = "el"

# Names of the data sets in LLaMA-Factory's dataset_info.json.
TRAIN = f"{TARGET}_train"
REPLAY = f"{SOURCE}_replay"
REVIEW = f"{TARGET}_review"

# A paragraph as (language -> text); all languages of a row say the same.
Row = dict[str, str]


@dataclass(frozen=True)
class TextSizes:
    """How much text each purpose gets, and which paragraphs count."""

    heldout_characters: int = 16_000  # per language
    analysis_sentences: int = 200  # per language
    replay_characters: int = 120_000
    train_characters: int = 150_000
    review_characters: int = 20_000  # of the training text, shown again in stage 2
    min_paragraph: int = 40  # shorter ones are labels of buttons and cells of tables
    max_sentence: int = 300  # of the analysis
    max_document: int = 3_000  # a page is cut here, so that no long page dominates


@dataclass(frozen=True)
class HelpSplit:
    """Texts from disjoint sets of pages; no paragraph is in two of them."""

    heldout: dict[str, list[str]]  # source and target language -> documents
    analysis: dict[str, list[str]]  # every language -> sentences; entry i says the same in all of them
    replay: list[str]  # documents in the source language
    train: dict[str, list[str]]  # target language -> documents


def page_paragraphs(html: str) -> dict[str, str]:
    """Read the paragraphs of a help page.

    Args:
        html: A page of LibreOffice's help.

    Returns:
        Paragraph id -> text with single blanks, of the `<p id=…>` in `#DisplayArea`, in the order of the page.
    """
    soup = BeautifulSoup(html, "html.parser", parse_only=SoupStrainer(id="DisplayArea"))
    return {str(p["id"]): " ".join(p.get_text().split()) for p in soup.find_all("p", id=True)}


def align_paragraphs(pages: Mapping[str, Mapping[str, str]], min_characters: int) -> list[Row]:
    """Align the paragraphs of one page in several languages by their ids.

    Args:
        pages: Language -> paragraph id -> text; the first language gives the order.
        min_characters: Rows with a shorter text in any language are dropped.

    Returns:
        Paragraphs that all languages have; those that are the same in two languages were left untranslated and are
        dropped.
    """
    first = next(iter(pages.values()))
    rows = (
        {language: page[name] for language, page in pages.items()}
        for name in first
        if all(name in page for page in pages.values())
    )
    return [
        row
        for row in rows
        if len(set(row.values())) == len(row) and all(len(text) >= min_characters for text in row.values())
    ]


class HelpPages:
    """Help pages in a random order, each handed out once.

    Args:
        folders: Language -> folder of pages.
        sizes: Limits on paragraphs and documents.
        seed: Of the order.
    """

    def __init__(self, folders: Mapping[str, Path], sizes: TextSizes, seed: int) -> None:
        self.folders = folders
        self.sizes = sizes
        names = set.intersection(
            *({str(path.relative_to(folder)) for path in folder.rglob("*.html")} for folder in folders.values())
        )
        if not names:
            raise UserError(f"no help page is in all of: {', '.join(map(str, folders.values()))}")
        self._names = sorted(names)
        random.Random(seed).shuffle(self._names)
        self._next_names = iter(self._names)
        self._seen: set[str] = set()

    def documents(self, languages: Sequence[str]) -> Iterator[list[Row]]:
        """Yield each next page as rows of new paragraphs in these languages; pages without any are passed over."""
        for name in self._next_names:
            pages = {
                language: page_paragraphs((self.folders[language] / name).read_text(encoding="utf-8"))
                for language in languages
            }
            rows = [row for row in align_paragraphs(pages, self.sizes.min_paragraph) if self._is_new(row)]
            if rows:
                yield rows
        raise UserError(
            f"the {len(self._names)} help pages do not hold enough text in {', '.join(languages)}: ask for less text"
        )

    def _is_new(self, row: Row) -> bool:
        """Whether no page before held a text of this row; many paragraphs are embedded in several pages."""
        if not self._seen.isdisjoint(row.values()):
            return False
        self._seen.update(row.values())
        return True


def split_help(
    folders: Mapping[str, Path], sizes: TextSizes, seed: int, targets: Sequence[str] = (TARGET,)
) -> HelpSplit:
    """Split help pages by page into texts for evaluation, analysis, replay and training.

    Args:
        folders: Language -> folder of pages; must have the source and the target languages.
        sizes: How much text each purpose gets.
        seed: Of the random order of the pages.
        targets: The languages to learn, whose texts say the same.

    Returns:
        The texts; no two purposes share a page or a paragraph.

    Raises:
        UserError: if the pages hold less text than asked for.
    """
    pages = HelpPages(folders, sizes, seed)
    heldout = _take_documents(pages, (SOURCE, *targets), sizes.heldout_characters)
    analysis = _take_sentences(pages, tuple(folders), sizes.analysis_sentences)
    replay = _take_documents(pages, (SOURCE,), sizes.replay_characters)
    # The English page is read along, to tell the paragraphs that were left untranslated.
    train = _take_documents(pages, (SOURCE, *targets), sizes.train_characters)
    del train[SOURCE]
    return HelpSplit(heldout=heldout, analysis=analysis, replay=replay[SOURCE], train=train)


def _take_documents(pages: HelpPages, languages: Sequence[str], characters: int) -> dict[str, list[str]]:
    """Take pages until the last language has this many characters; a document is a page, a paragraph per line."""
    documents: dict[str, list[str]] = {language: [] for language in languages}
    total = 0
    for rows in pages.documents(languages):
        for language in languages:
            documents[language].append(_join([row[language] for row in rows], pages.sizes.max_document))
        total += len(documents[languages[-1]][-1])
        if total >= characters:
            break
    return documents


def _join(paragraphs: Sequence[str], max_characters: int) -> str:
    """Join the first paragraph and as many more as fit, a paragraph per line."""
    document = paragraphs[0]
    for paragraph in paragraphs[1:]:
        if len(document) + 1 + len(paragraph) > max_characters:
            break
        document += "\n" + paragraph
    return document


def _take_sentences(pages: HelpPages, languages: Sequence[str], count: int) -> dict[str, list[str]]:
    """Take this many parallel paragraphs that are not too long in any language."""
    rows: list[Row] = []
    for page in pages.documents(languages):
        rows += [row for row in page if max(map(len, row.values())) <= pages.sizes.max_sentence]
        if len(rows) >= count:
            break
    return {language: [row[language] for row in rows[:count]] for language in languages}


def write_split(split: HelpSplit, udhr: Mapping[str, str], review_characters: int, output: Path) -> None:
    """Write all texts of the demo as JSON lines.

    Args:
        split: The help texts.
        udhr: Language -> the text of the Universal Declaration of Human Rights.
        review_characters: Length of the part of the training text that stage 2 reviews.
        output: Folder to create: `analysis/{language}.jsonl`, `heldout/{help|udhr}_{language}.jsonl`, and `train/` with
            LLaMA-Factory's `dataset_info.json`, which tags the replay as old and the target languages as new.
    """
    with new_directory(output) as directory:
        for language, sentences in split.analysis.items():
            write_texts(directory / "analysis" / f"{language}.jsonl", sentences)
        for language, documents in split.heldout.items():
            write_texts(directory / "heldout" / f"help_{language}.jsonl", documents)
        for language, text in udhr.items():
            write_texts(directory / "heldout" / f"udhr_{language}.jsonl", [text])
        purposes = {REPLAY: ("old", split.replay)}
        for language, texts in split.train.items():
            # The first documents that together have at least so many characters, or all.
            lengths = accumulate(map(len, texts), initial=0)
            review = [text for text, before in zip(texts, lengths, strict=False) if before < review_characters]
            purposes |= {f"{language}_train": ("new", texts), f"{language}_review": ("new", review)}
        info = {}
        for name, (tag, texts) in purposes.items():
            write_texts(directory / "train" / f"{name}.jsonl", texts)
            info[name] = {"file_name": f"{name}.jsonl", "columns": {"prompt": "text"}, "language": tag}
        write_json(directory / "train" / "dataset_info.json", info)
