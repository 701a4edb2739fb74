"""What the HellaSwag tasks ask: the data sets' contexts and endings, without the marks of their web pages."""

from __future__ import annotations

import re
from typing import Any

import datasets

# Where WikiHow has a heading. The translations kept the English marks in some places and have their own in others.
HEADINGS = {"el": ("title", "τίτλος"), "tr": ("title", "başlık", "header", "adım")}


def el(dataset: datasets.Dataset) -> datasets.Dataset:
    """Greek."""
    return dataset.map(lambda row: ask(row, "el"))


def tr(dataset: datasets.Dataset) -> datasets.Dataset:
    """Turkish."""
    return dataset.map(lambda row: ask(row, "tr"))


def ask(row: dict[str, Any], language: str) -> dict[str, Any]:
    """The fields `query` and `choices` of a question, worded as lm-eval's English task words them.

    Args:
        row: One row of the data set, with `activity_label`, `ctx_a`, `ctx_b` and `endings`.
        language: A key of `HEADINGS`.
    """
    context = f"{row['activity_label']}: {row['ctx_a']} {begin_sentence(row['ctx_b'], language)}"
    return {"query": clean(context, language), "choices": [clean(ending, language) for ending in row["endings"]]}


def begin_sentence(text: str, language: str) -> str:
    """The text with a capital as its first letter, which of a Turkish `i` is `İ`; names inside it keep theirs."""
    first = "İ" if language == "tr" and text[:1] == "i" else text[:1].upper()
    return first + text[1:]


def clean(text: str, language: str) -> str:
    """The text with a full stop for every heading's mark, and without other marks in brackets."""
    headings = "|".join(HEADINGS[language])
    text = re.sub(rf" \[(?:{headings})\]", ". ", text.strip())
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")
