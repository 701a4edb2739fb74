"""Corpora of an analysis: files, folders or hub data sets, one per language, and seeded samples of their sentences."""

from neuronmoe_plugins.corpora.concepts import Concepts, read_concepts
from neuronmoe_plugins.corpora.overlap import SharedPair, SharedSentences, require_distinct_corpora, shared_sentences
from neuronmoe_plugins.corpora.samples import Corpus, CorpusFile, Reservoir, SampleSet, corpus_texts, sample_corpus
from neuronmoe_plugins.corpora.sources import CorpusSpec, HubDataset, parse_corpus_specs
from neuronmoe_plugins.corpora.texts import Sentence

__all__ = [
    "Concepts",
    "Corpus",
    "CorpusFile",
    "CorpusSpec",
    "HubDataset",
    "Reservoir",
    "SampleSet",
    "Sentence",
    "SharedPair",
    "SharedSentences",
    "corpus_texts",
    "parse_corpus_specs",
    "read_concepts",
    "require_distinct_corpora",
    "sample_corpus",
    "shared_sentences",
]
