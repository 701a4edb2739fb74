"""Reads `--concepts DIR`: one JSON file per language with its positive and negative sentences.

The format is that of ml-selfcond (Suau et al. 2022), which the published code of the paper uses, too:
`{"concept": "el", "group": "sense", "source": …, "sentences": {"positive": [...], "negative": [...]}}`.
Every file has negatives of its own; where they were drawn independently they differ from the other files' positives.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

from neuronmoe_plugins.corpora.beginnings import conversion
from neuronmoe_plugins.corpora.samples import Corpus, CorpusFile, SampleSet
from neuronmoe_plugins.corpora.texts import Sentence, list_fields, parse_json, require_text
from neuronmoe_plugins.errors import UserError, one_line
from neuronmoe_plugins.languages import NAME

CONCEPT_LIST = "concept_list.csv"
GROUP = "sense"


@dataclass(frozen=True)
class Concepts:
    """All concepts of a folder."""

    corpora: tuple[Corpus, ...]
    """The positives of every concept, whose name is the language."""
    samples: SampleSet
    """Positives and negatives of every language, as its file has them."""


@dataclass(frozen=True)
class _Concept:
    corpus: Corpus
    negatives: tuple[Sentence, ...]


def read_concepts(folder: Path) -> Concepts:
    """Read all concepts of a folder, every sentence as it stands in the file.

    The files are those that `concept_list.csv` (columns group and concept) lists as GROUP/CONCEPT.json, else all .json
    files of the folder, else those of its folder `sense`, by name.

    Raises:
        UserError: no such folder or file, a file in another format, or two files of one concept.
    """
    concepts = [_read_concept(path) for path in _concept_files(folder)]
    files: dict[str, str] = {}
    for concept in concepts:
        earlier = files.setdefault(concept.corpus.language, concept.corpus.path)
        if earlier != concept.corpus.path:
            raise UserError(f"{earlier} and {concept.corpus.path} both have the concept {concept.corpus.language!r}")
    corpora = tuple(concept.corpus for concept in concepts)
    positives, negatives = [corpus.sentences for corpus in corpora], [concept.negatives for concept in concepts]
    return Concepts(corpora, SampleSet.from_samples(list(files), positives, negatives))


def _concept_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"--concepts {folder} is no folder")
    if (folder / CONCEPT_LIST).exists():
        return _listed_files(folder)
    files = sorted(folder.glob("*.json")) or sorted((folder / GROUP).glob("*.json"))
    if not files:
        raise UserError(f"--concepts {folder} has no .json file and no {GROUP}/*.json")
    return files


def _listed_files(folder: Path) -> list[Path]:
    path = folder / CONCEPT_LIST
    rows = list(csv.DictReader(_read_text(path)[0].splitlines()))
    if not rows or not all(row.get("group") and row.get("concept") for row in rows):
        raise UserError(f"{path}: every line needs the columns group and concept")
    files = list(dict.fromkeys(folder / row["group"] / f"{row['concept']}.json" for row in rows))
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise UserError(f"{path} lists {missing}, which is not there")
    return files


def _read_concept(path: Path) -> _Concept:
    text, sha256 = _read_text(path)
    record = parse_json(text, str(path))
    language = _member(record, "concept", str(path))
    if not isinstance(language, str) or not NAME.fullmatch(language):
        raise UserError(f"{path}: the concept {language!r} is no language name (letters, digits, - and _)")
    sentences = _member(record, "sentences", str(path))
    positives, negatives = (_sentences(sentences, kind, path) for kind in ("positive", "negative"))
    file = CorpusFile(str(path), sha256, len(positives))
    return _Concept(Corpus(language, str(path), sha256, len(positives), positives, (file,)), negatives)


def _sentences(record: object, kind: str, path: Path) -> tuple[Sentence, ...]:
    texts = _member(record, kind, f"{path}: sentences")
    if not isinstance(texts, list) or not texts:
        raise UserError(f"{path}: sentences.{kind} is no list of sentences")
    names = [f"{path}:{kind} {number}" for number in range(1, len(texts) + 1)]
    sentences = tuple(Sentence(require_text(text, name), name) for text, name in zip(texts, names, strict=True))
    blank = next((sentence.name for sentence in sentences if not sentence.text.strip()), None)
    if blank is not None:
        raise UserError(f"{blank} is a blank sentence; remove it")
    return sentences


def _member(record: object, key: str, place: str) -> object:
    if not isinstance(record, dict):
        raise UserError(f"{place}: not a JSON object with {key!r}")
    if key not in record:
        raise UserError(f"{place}: no {key!r}; there are: {list_fields(record)}")
    return record[key]


def _read_text(path: Path) -> tuple[str, str]:
    """The text of a UTF-8 file and the SHA-256 of its bytes."""
    try:
        raw = path.read_bytes()
        return raw.decode("utf-8-sig"), hashlib.sha256(raw).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or one_line(error)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; {conversion(raw)}") from error
