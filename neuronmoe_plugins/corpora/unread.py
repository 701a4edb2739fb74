"""What of a source is not read although it may be text: said by every command that reads corpora, in the same words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from neuronmoe_plugins.corpora.texts import ending_of, files_below

MOST_LOST = 0.1
"""Share of records; with more without a text, a file is refused, and with more empty texts, that is said."""
# Endings of files that may hold text, of which no command reads all.
OTHER_KINDS = (
    *(".csv", ".tsv", ".json", ".json.gz", ".jsonl.zst", ".txt.zst", ".jsonl.xz", ".txt.xz", ".jsonl.bz2", ".txt.bz2"),
    *(".arrow", ".xml", ".html", ".zip", ".tar", ".tar.gz", ".7z", ".docx", ".pdf", ".warc", ".warc.gz"),
)


def unread_files(folder: Path, kinds: Collection[str]) -> Iterator[str]:
    """A note if a folder that is a source has files that may hold text, of other kinds than those that are read."""
    if not folder.is_dir():
        return
    files = files_below(folder, OTHER_KINDS)
    others = Counter(ending_of(file, OTHER_KINDS) for file in files if ending_of(file, kinds) is None)
    if others:
        listed = ", ".join(f"{number} {ending}" for ending, number in sorted(others.items()))
        yield f"{folder} has files that are not read ({listed})"


def empty_texts(empty: int, records: int, place: str) -> Iterator[str]:
    """A note if more than `MOST_LOST` of the records have an empty text; `place` says where the texts are."""
    if empty > MOST_LOST * records:
        yield f"{empty:,} of {records:,} records have an empty text in {place}"
