"""What is written of a document: the whole of it, or one of its sentences."""

from __future__ import annotations

from dataclasses import dataclass

from neuronmoe_plugins.corpora.samples import sentence_splitter
from neuronmoe_plugins.corpora.texts import Sentence
from neuronmoe_plugins.data.texts import Keys, normalise


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
