"""Samples the sentences of a corpus, seeded, in one pass over its texts."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.corpora.files import find_files, read_file
from neuronmoe_plugins.neurons.corpora.hub import read_hub
from neuronmoe_plugins.neurons.corpora.lines import Digest
from neuronmoe_plugins.neurons.corpora.records import Sentence
from neuronmoe_plugins.neurons.corpora.sources import CorpusSpec, HubDataset
from neuronmoe_plugins.neurons.corpora.splitting import sentence_splitter


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

    @property
    def duplicates(self) -> int:
        """How many sampled sentences repeat an earlier one of the sample."""
        return len(self.sentences) - len({sentence.text for sentence in self.sentences})

    def names(self) -> list[str]:
        """Where every sampled sentence stands, as in `FILE:LINE`."""
        return [sentence.name for sentence in self.sentences]


class _Reservoir:
    """A uniform sample, without replacement, of a stream of unknown length (Vitter 1985, algorithm R)."""

    def __init__(self, size: int, generator: random.Random) -> None:
        self.seen = 0
        self._size = size
        self._generator = generator
        self._kept: list[tuple[int, Sentence]] = []

    def offer(self, sentence: Sentence) -> None:
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
    reservoir = _Reservoir(samples, random.Random(f"{seed}:{spec.language}"))
    files: list[CorpusFile] = []
    for path, read in _parts(spec, text_field):
        digest, before = hashlib.sha256(), reservoir.seen
        for text in read(digest.update):
            for sentence in split(text):
                reservoir.offer(sentence)
        files.append(CorpusFile(path, digest.hexdigest(), reservoir.seen - before))
    _require_enough(spec, reservoir.seen, samples)
    sha256 = _combined_sha256(spec, files)
    return Corpus(spec.language, str(spec.source), sha256, reservoir.seen, reservoir.sentences(), tuple(files))


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
        yield str(file), partial(read_file, file, field)


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


def _require_enough(spec: CorpusSpec, available: int, samples: int) -> None:
    if available == 0:
        raise UserError(f"{spec.named(spec.source)} is empty: it has no sentence")
    if available < samples:
        raise UserError(
            f"{spec.named(spec.source)} has {available} sentences, {samples} were asked for; "
            f"add text or pass --samples {available}"
        )
