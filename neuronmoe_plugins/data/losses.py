"""What is said where a source gives too little: files most of whose text would be lost, and too few documents."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from neuronmoe_plugins.corpora.beginnings import beginning, older_encoding
from neuronmoe_plugins.corpora.unread import MOST_LOST
from neuronmoe_plugins.data.choosing import Choice
from neuronmoe_plugins.data.reading import NO_FIELD, NO_TEXT, NOT_JSON, NOT_UTF8
from neuronmoe_plugins.data.scanning import ShardCounts
from neuronmoe_plugins.data.sources import Source
from neuronmoe_plugins.data.spec import ANY, DatasetSpec
from neuronmoe_plugins.errors import UserError

ADVICE = {
    NOT_JSON: "write one JSON object a line",
    NO_FIELD: "name the texts' field by `text:`",
    NO_TEXT: "name a field of texts by `text:`",
}


def require_readable(dataset: DatasetSpec, source: Source) -> None:
    """Refuse files of which more than `MOST_LOST` of the records have no readable text.

    Raises:
        UserError: naming the worst file, the first of these records, and what to do; not with `broken_records: any`.
    """
    lossy = {path: counts for path, counts in source.parts().items() if _lost(counts) > MOST_LOST * counts.records}
    if dataset.broken_records == ANY or not lossy:
        return
    path, counts = max(lossy.items(), key=lambda item: _lost(item[1]) / item[1].records)
    (kind, _), *_ = counts.broken.most_common()
    advice = ADVICE.get(kind, "mend them")
    if kind == NOT_UTF8:
        advice = older_encoding(beginning(Path(path)), dataset.language)
    more = f" (and {len(lossy) - 1} more files)" if len(lossy) > 1 else ""
    raise UserError(
        f"{dataset.name}: {_lost(counts):,} of {counts.records:,} records of {path}{more} have no readable text "
        f"({_listed(counts.broken)}; first {counts.first_broken}); {advice}, or take what is left by "
        f"`broken_records: {ANY}`"
    )


def require_enough(dataset: DatasetSpec, source: Source, choice: Choice) -> None:
    """Refuse a source that has less than was asked for, unless the spec takes what there is; raises `UserError`."""
    if dataset.shortage == "warn" or (choice.reached and choice.documents):
        return
    unit, counts = dataset.amount.unit, source.counts()
    asked = "all there is" if dataset.amount.number is None else f"{dataset.amount.number:,}"
    passed_over = _listed(counts.broken + counts.dropped + choice.passed_over)
    raise UserError(
        f"{dataset.name}: the source has {choice.so_far(unit):,} {unit} to draw, and {asked} were asked for"
        f"{f' (passed over: {passed_over})' if passed_over else ''}; add text, ask for less, or take what there is by "
        "`shortage: warn`"
    )


def _lost(counts: ShardCounts) -> int:
    return counts.broken.total()


def _listed(numbers: Counter[str]) -> str:
    return ", ".join(f"{number:,} {reason}" for reason, number in numbers.items() if number)
