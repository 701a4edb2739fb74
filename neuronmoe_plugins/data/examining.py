"""The second look at documents that may be drawn: what takes their texts, and too long for all of a source.

Sentences, languages, tokens and near-duplicates are looked at only as far down the order as the amount asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronmoe_plugins.data.documents import Keys, LanguageFilter, TextMaker, TextSettings
from neuronmoe_plugins.data.near_duplicates import Signer
from neuronmoe_plugins.data.reading import Consumed, ignore, read_shard
from neuronmoe_plugins.data.shards import Shard
from neuronmoe_plugins.data.workers import report
from neuronmoe_plugins.data.workspace import save_array
from neuronmoe_plugins.errors import UserError

AT_ONCE = 256
KEPT, NO_SENTENCE, OTHER_LANGUAGE = range(3)
REASONS = {NO_SENTENCE: "without a sentence within the limits", OTHER_LANGUAGE: "in another language"}
EXAMINED = np.dtype([("verdict", "<u4"), ("size", "<u4"), ("tokens", "<u4"), ("written", "<u8")])
"""What was found: `KEPT` or a key of `REASONS`, and bytes, tokens and key of the text that would be written."""


@dataclass(frozen=True)
class ExamineSettings:
    """What is looked at.

    Attributes:
        texts: How texts are made.
        language: The data set's.
        language_probability: Least probability of it; None does not ask.
        tokenizer: File of a `tokenizers` tokenizer whose tokens are counted; None counts none.
        near_duplicates: Jaccard similarity from which documents are near-duplicates; None does not ask.
    """

    texts: TextSettings
    language: str
    language_probability: float | None
    tokenizer: str | None
    near_duplicates: float | None

    @property
    def needs_texts(self) -> bool:
        """Whether the scan has not told everything already."""
        return bool(self.texts.sentences_in or self.language_probability or self.tokenizer or self.near_duplicates)


@dataclass(frozen=True)
class ExamineJob:
    """Documents of one shard to examine.

    Attributes:
        shard: Where they are.
        settings: The data set's.
        rows: uint32 (documents,), ascending.
        stem: Where to write: `STEM.bands.npy`, if near-duplicates are asked for, and, last, `STEM.npy`.
    """

    shard: Shard
    settings: ExamineSettings
    rows: NDArray[np.uint32]
    stem: str

    @property
    def done(self) -> Path:
        """The file that is there when the job is done."""
        return Path(f"{self.stem}.npy")

    @property
    def bands(self) -> Path:
        """The file of the signatures, uint64 (documents, bands)."""
        return Path(f"{self.stem}.bands.npy")


def examine_rows(job: ExamineJob) -> None:
    """Write what the documents are, an `EXAMINED` array in the order of the rows, and their signatures."""
    examiner = _examiner(job.settings)
    found, bands = np.zeros(len(job.rows), EXAMINED), []
    texts = read_rows(job.shard, job.settings.texts.text, job.rows)
    for start in range(0, len(job.rows), AT_ONCE):
        part = list(islice(texts, AT_ONCE))
        report(len(part))
        written = examiner.examine([text for _, text in part], found[start : start + AT_ONCE])
        if job.settings.near_duplicates is not None:
            bands.append(examiner.signatures(written))
    if job.settings.near_duplicates is not None:
        save_array(job.bands, np.concatenate(bands))
    save_array(job.done, found)


def read_rows(
    shard: Shard, field: str, rows: NDArray[np.uint32], consumed: Consumed = ignore
) -> Iterator[tuple[int, str]]:
    """The texts of these rows (ascending), as they stand in the file; raises `UserError` if one has none any more."""
    wanted = set(rows.tolist())
    for found, (row, text) in enumerate(read_shard(shard, field, wanted.__contains__, consumed), start=1):
        if not isinstance(text, str):
            raise changed(shard)
        yield row, text
        if found == len(wanted):
            return
    raise changed(shard)


def changed(shard: Shard) -> UserError:
    """What to say of a file that is no longer what it was when it was scanned."""
    return UserError(f"{shard.path} was changed while it was read; run the command again once it stays as it is")


class Examiner:
    """Examines texts, with the libraries that the settings ask for.

    Args:
        settings: What is looked at.

    Raises:
        UserError: for a missing package, or a language that the library does not know.
    """

    def __init__(self, settings: ExamineSettings) -> None:
        self._maker = TextMaker(settings.texts)
        self._keys = Keys(settings.texts.seed)
        probability, threshold = settings.language_probability, settings.near_duplicates
        self._language = None if probability is None else LanguageFilter(settings.language, probability)
        self._signer = None if threshold is None else Signer(threshold, settings.texts.seed)
        self._tokenizer: Any = None
        if settings.tokenizer is not None:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(settings.tokenizer)
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()

    def examine(self, texts: Sequence[str], found: NDArray[np.void]) -> list[str]:
        """Fill in what was found about each text.

        Returns:
            What would be written of each, nothing of those that are not kept.
        """
        written = []
        for number, text in enumerate(texts):
            made = self._maker.written(text)
            verdict = NO_SENTENCE if made is None else KEPT
            if made is not None and self._language is not None and not self._language.accepts(made):
                verdict = OTHER_LANGUAGE
            made = made if made is not None and verdict == KEPT else ""
            encoded = made.encode()
            found[number] = (verdict, len(encoded), 0, self._keys.of(encoded))
            written.append(made)
        if self._tokenizer is not None:
            found["tokens"] = [
                len(one.ids) for one in self._tokenizer.encode_batch_fast(written, add_special_tokens=False)
            ]
        return written

    def signatures(self, written: Sequence[str]) -> NDArray[np.uint64]:
        """uint64 (texts, bands) of the texts that would be written."""
        assert self._signer is not None
        return self._signer.bands_of(written)


@lru_cache(maxsize=1)
def _examiner(settings: ExamineSettings) -> Examiner:
    """One per process, since its libraries take long to load."""
    return Examiner(settings)
