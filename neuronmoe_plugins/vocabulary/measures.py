"""How the old and the new tokenizer cut a corpus, text by text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

from neuronmoe_plugins.corpora import CorpusSpec, Reservoir, Sentence, corpus_texts
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.tables import Table
from neuronmoe_plugins.tokenizer_fit import MOST_TEXTS, TokenizerFit

AT_ONCE = 1000


class Texts:
    """The texts of a corpus, in parts of `AT_ONCE`; a sample of them is kept.

    Args:
        spec: The corpus.
        field: The field or column of its texts.
    """

    def __init__(self, spec: CorpusSpec, field: str) -> None:
        self.spec, self.field, self.number = spec, field, 0
        self._sample = Reservoir(MOST_TEXTS, Random(0))

    def parts(self) -> Iterator[list[Sentence]]:
        """All texts; raises `UserError` for what cannot be read, or has none."""
        texts = (text for text in corpus_texts(self.spec, self.field) if text.text.strip())
        while part := list(islice(texts, AT_ONCE)):
            self.number += len(part)
            for text in part:
                self._sample.offer(text)
            yield part
        if not self.number:
            raise UserError(f"{self.spec.named(self.spec.source)} is empty: it has no text")

    def fit(self, tokenizer: Any) -> TokenizerFit:
        """How a tokenizer fits the sample of the texts that were read."""
        return TokenizerFit.of(tokenizer, [text.text for text in self._sample.sentences()])


@dataclass(frozen=True)
class Measure:
    """A corpus by both tokenizers.

    Attributes:
        language: Its language.
        source: Where it is from.
        use: `learnt`, `kept` or `measured`.
        texts: How many it has.
        cut_otherwise: How many of them the tokenizers do not cut alike; None if they were not all compared.
        before: How the old tokenizer fits a sample.
        after: How the new one does.
    """

    language: str
    source: str
    use: str
    texts: int
    cut_otherwise: int | None
    before: TokenizerFit
    after: TokenizerFit

    @classmethod
    def of(cls, texts: Texts, use: str, before: Any, after: Any, cut_otherwise: int | None = None) -> Measure:
        """Of a corpus whose texts were read, by tokenizers of transformers."""
        named = str(texts.spec.source)
        return cls(texts.spec.language, named, use, texts.number, cut_otherwise, texts.fit(before), texts.fit(after))

    def record(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "before": self.before.record(), "after": self.after.record()}


def other_cuts(part: Sequence[Sentence], before: Any, after: Any) -> list[Sentence]:
    """The texts that two tokenizers of transformers do not cut into exactly the same tokens."""
    texts = [text.text for text in part]
    old, new = (each(texts, add_special_tokens=False, verbose=False)["input_ids"] for each in (before, after))
    return [text for text, one, other in zip(part, old, new, strict=True) if one != other]


def measures_table(measures: Sequence[Measure]) -> Table:
    """A row per corpus."""
    rows = []
    for each in measures:
        numbers = [f"{name:.2f}" if name is not None else "-" for name in _numbers(each)]
        cut = "-" if each.cut_otherwise is None else f"{each.cut_otherwise:,} of {each.texts:,}"
        rows.append([each.language, each.use, *numbers, cut])
    header = ["language", "text", "tokens per\nword before", "after", "bytes per\ntoken before", "after"]
    return Table("", [*header, "texts cut\notherwise"], rows, words=range(2))


def _numbers(measure: Measure) -> list[float | None]:
    before, after = measure.before.record(), measure.after.record()
    return [record[name] for name in ("tokens_per_word", "bytes_per_token") for record in (before, after)]
