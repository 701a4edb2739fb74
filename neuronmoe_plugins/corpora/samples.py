"""Seeded samples of the sentences of corpora, and what each sentence is to every language: a positive or a negative."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neuronmoe_plugins.corpora.beginnings import beginning, older_encoding
from neuronmoe_plugins.corpora.sources import CorpusSpec, HubDataset
from neuronmoe_plugins.corpora.texts import (
    READERS,
    Digest,
    NotUtf8Error,
    Sentence,
    find_files,
    has_fields,
    read_file,
    read_hub,
)
from neuronmoe_plugins.corpora.unread import empty_texts, unread_files
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.languages import ISO_639_1, base_code

POSITIVE, NEGATIVE, UNUSED = 1, 0, -1


@dataclass(frozen=True)
class CorpusFile:
    """A file that was read, or a data set of the hub."""

    path: str
    sha256: str
    """Of the file; for a data set of the hub, of all texts read, each followed by a line break."""
    sentences: int


@dataclass(frozen=True)
class Corpus:
    """The sampled sentences of one language, in the order of the source, and what is needed to sample them again."""

    language: str
    path: str
    """The file, folder or `hub:NAME[:CONFIG]@SPLIT`."""
    sha256: str
    """That of the file or data set; for a folder, that of what sha256sum prints for its files."""
    available: int
    sentences: tuple[Sentence, ...]
    files: tuple[CorpusFile, ...]
    notes: tuple[str, ...] = ()
    """What of the source was not read."""

    @property
    def duplicates(self) -> int:
        """How many sampled sentences repeat an earlier one of the sample."""
        return len(self.sentences) - len({sentence.text for sentence in self.sentences})

    def names(self) -> list[str]:
        """Where every sampled sentence stands, as in `FILE:LINE`."""
        return [sentence.name for sentence in self.sentences]


class Reservoir:
    """A uniform sample, without replacement, of a stream of unknown length (Vitter 1985, algorithm R).

    Args:
        size: How many sentences it has at most.
        generator: What chooses them.
    """

    def __init__(self, size: int, generator: random.Random) -> None:
        self.seen = 0
        self._size = size
        self._generator = generator
        self._kept: list[tuple[int, Sentence]] = []

    def offer(self, sentence: Sentence) -> None:
        """Take the next of the stream."""
        self.seen += 1
        slot = len(self._kept) if len(self._kept) < self._size else self._generator.randrange(self.seen)
        if slot < self._size:
            self._kept[slot : slot + 1] = [(self.seen, sentence)]

    def sentences(self) -> tuple[Sentence, ...]:
        """The sample, in the order of the stream."""
        return tuple(sentence for _, sentence in sorted(self._kept, key=lambda kept: kept[0]))


def sample_corpus(
    spec: CorpusSpec, samples: int, seed: int, *, text_field: str = "text", split_sentences: bool = False
) -> Corpus:
    """Sample `samples` sentences of a corpus uniformly, without replacement.

    The generator is seeded by (seed, language), so adding a language leaves the other samples as they are. The same
    texts give the same sample from every kind of file. White space around a text is dropped; blank texts do not count.

    Args:
        spec: the language and where its texts are.
        samples: how many sentences.
        seed: of the sampling.
        text_field: the field of JSON objects, or the column, that holds the text.
        split_sentences: split each text into sentences; otherwise every line, object or row is one.

    Raises:
        UserError: a missing, unreadable or empty source, a broken record, or fewer sentences than asked for.
    """
    split = sentence_splitter(spec.language) if split_sentences else _whole
    reservoir = Reservoir(samples, random.Random(f"{seed}:{spec.language}"))
    files: list[CorpusFile] = []
    records = empty = 0
    for path, read in _parts(spec, text_field):
        digest, before = hashlib.sha256(), reservoir.seen
        for text in read(digest.update):
            records += 1
            empty += has_fields(path) and not text.text.strip()
            for sentence in split(text):
                reservoir.offer(sentence)
        files.append(CorpusFile(path, digest.hexdigest(), reservoir.seen - before))
    if reservoir.seen == 0:
        raise UserError(f"{spec.named(spec.source)} is empty: it has no sentence")
    if reservoir.seen < samples:
        raise UserError(
            f"{spec.named(spec.source)} has {reservoir.seen} sentences, {samples} were asked for; "
            f"add text or pass --samples {reservoir.seen}"
        )
    sha256 = _combined_sha256(spec, files)
    folder = [] if isinstance(spec.source, HubDataset) else unread_files(spec.source, READERS)
    notes = [f"{spec.language}: {note}" for note in (*folder, *empty_texts(empty, records, f"the field {text_field}"))]
    sentences = reservoir.sentences()
    return Corpus(spec.language, str(spec.source), sha256, reservoir.seen, sentences, tuple(files), tuple(notes))


def _parts(spec: CorpusSpec, field: str) -> Iterator[tuple[str, Callable[[Digest], Iterator[Sentence]]]]:
    """The name and the reader of every file of the source."""
    source = spec.source
    if isinstance(source, HubDataset):
        yield str(source), partial(read_hub, source, field)
        return
    try:
        files = find_files(source)
    except UserError as error:
        raise UserError(spec.named(error)) from error
    for file in files:
        yield str(file), partial(_read_file, spec.language, file, field)


def _read_file(language: str, path: Path, field: str, digest: Digest) -> Iterator[Sentence]:
    try:
        yield from read_file(path, field, digest)
    except NotUtf8Error as error:
        raise UserError(f"{error}; {older_encoding(beginning(path), language)}") from error


def corpus_texts(spec: CorpusSpec, text_field: str = "text") -> Iterator[Sentence]:
    """All texts of a corpus, in the order of the source; raises `UserError` for one that cannot be read."""
    for _, read in _parts(spec, text_field):
        yield from read(lambda block: None)


def _whole(text: Sentence) -> Iterator[Sentence]:
    stripped = text.text.strip()
    if stripped:
        yield Sentence(stripped, text.name)


def _combined_sha256(spec: CorpusSpec, files: list[CorpusFile]) -> str:
    if isinstance(spec.source, HubDataset) or not spec.source.is_dir():
        return files[0].sha256
    names = [Path(file.path).relative_to(spec.source).as_posix() for file in files]
    listing = "".join(f"{file.sha256}  {name}\n" for file, name in zip(files, names, strict=True))
    return hashlib.sha256(listing.encode()).hexdigest()


def sentence_splitter(language: str) -> Callable[[Sentence], Iterator[Sentence]]:
    """A function from a text to its sentences, without white space around them; blank ones are left out.

    Args:
        language: name of a corpus that begins with a code of ISO 639-1, as `el`, `zh-cn` and `pt_BR` do. sentencex has
            rules for some thirty languages and the relatives of more; all others, Turkish and Hungarian among them,
            are split by its rules for English, at the sentence ends of every script.

    Raises:
        UserError: `language` begins with no such code.
    """
    import sentencex

    code = base_code(language)
    # sentencex takes any other string for English without a word, "old" and "EL" as well.
    if code not in ISO_639_1:
        raise UserError(
            f"{language!r} is no language code, by which sentences are split; use the ISO 639-1 code, as in el, or "
            "split the sentences beforehand"
        )

    def split(text: Sentence) -> Iterator[Sentence]:
        parts = (part.strip() for part in sentencex.segment(code, text.text))
        for number, part in enumerate(filter(None, parts), start=1):
            yield Sentence(part, f"{text.name}#{number}")

    return split


@dataclass(frozen=True, eq=False)
class SampleSet:
    """Sentences and what each is to every language."""

    languages: tuple[str, ...]
    texts: tuple[str, ...]
    names: tuple[str, ...]
    """Where each text stands, as in `FILE:LINE`."""
    membership: NDArray[np.int8]
    """int8 (languages, texts): 1 for a positive sample of the language, 0 for a negative one, -1 for none."""

    def labels(self) -> NDArray[np.int64] | None:
        """int64 (texts,): the language of every text, if each is a positive of one and a negative of all others."""
        positive = self.membership == POSITIVE
        if (self.membership == UNUSED).any() or (positive.sum(axis=0) != 1).any():
            return None
        return positive.argmax(axis=0).astype(np.int64)

    def used_by(self, language: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Indices of the texts that the language at this index uses, ascending, and which of them are positives."""
        indices = np.flatnonzero(self.membership[language] != UNUSED).astype(np.int64)
        return indices, self.membership[language, indices] == POSITIVE

    @classmethod
    def from_corpora(cls, corpora: Sequence[Corpus]) -> SampleSet:
        """Every sentence is a positive of its own language and a negative of all others."""
        sentences = [sentence for corpus in corpora for sentence in corpus.sentences]
        own = np.repeat(np.arange(len(corpora)), [len(corpus.sentences) for corpus in corpora])
        return cls(
            tuple(corpus.language for corpus in corpora),
            tuple(sentence.text for sentence in sentences),
            tuple(sentence.name for sentence in sentences),
            (own == np.arange(len(corpora))[:, None]).astype(np.int8),
        )

    @classmethod
    def from_samples(
        cls, languages: Sequence[str], positives: Sequence[Sequence[Sentence]], negatives: Sequence[Sequence[Sentence]]
    ) -> SampleSet:
        """Merge each language's own positives and negatives, so that a text which several use is run once.

        A text that one language has several times, or as both, stays there as often; all else is shared. What
        `used_by` gives for a language are then exactly its positives and negatives, with their repetitions.
        """
        uses: dict[str, list[list[list[str]]]] = {}
        for kind, samples in enumerate((positives, negatives)):
            for language, sentences in enumerate(samples):
                for sentence in sentences:
                    empty: list[list[list[str]]] = [[[] for _ in languages] for _ in range(2)]
                    uses.setdefault(sentence.text, empty)[kind][language].append(sentence.name)
        merged = [_merge(*names) for names in uses.values()]
        return cls(
            tuple(languages),
            tuple(text for text, (names, _) in zip(uses, merged, strict=True) for _ in names),
            tuple(name for names, _ in merged for name in names),
            np.concatenate([membership for _, membership in merged], axis=1),
        )


def _merge(positive: list[list[str]], negative: list[list[str]]) -> tuple[list[str], NDArray[np.int8]]:
    """The fewest copies of one text that serve every language: their names and their membership.

    Args:
        positive: for every language, the names of the text among its positives.
        negative: the same among its negatives.
    """
    copies = max(len(own) + len(others) for own, others in zip(positive, negative, strict=True))
    names = [""] * copies
    membership = np.full((len(positive), copies), UNUSED, dtype=np.int8)
    first = 0
    for language, own in enumerate(positive):
        # Positives of different languages go to different copies, so that the negatives of the others fit beside them.
        for copy, name in enumerate(own, start=first):
            membership[language, copy % copies] = POSITIVE
            names[copy % copies] = names[copy % copies] or name
        first += len(own)
    for language, others in enumerate(negative):
        free = np.flatnonzero(membership[language] == UNUSED)
        for copy, name in zip(free.tolist(), others, strict=False):
            membership[language, copy] = NEGATIVE
            names[copy] = names[copy] or name
    return names, membership
