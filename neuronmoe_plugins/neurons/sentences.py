"""The tokenised sentences of an analysis: read from corpora, and shared by its processes through a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from neuronmoe_plugins.corpora import (
    Corpus,
    HubDataset,
    SampleSet,
    read_concepts,
    require_distinct_corpora,
    sample_corpus,
    shared_sentences,
)
from neuronmoe_plugins.corpora.samples import POSITIVE
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import digest, read_json, write_json
from neuronmoe_plugins.models import ADAPTER, TOKENIZER, require_model
from neuronmoe_plugins.neurons.arrays import IntArray
from neuronmoe_plugins.neurons.chat import Span, tokenize_in_chat
from neuronmoe_plugins.neurons.loading import load_tokenizer, require_device, tokenize
from neuronmoe_plugins.neurons.metrics import NeuronMetric, Samples
from neuronmoe_plugins.neurons.options import AnalyzeOptions
from neuronmoe_plugins.tokenizer_fit import TokenizerFit

PaddingSide = Literal["left", "right"]


@dataclass(frozen=True)
class TokenizedSentences:
    """Sentences of all languages.

    Attributes:
        languages: Names of the languages.
        membership: For every language what each sentence is to it: 1 a positive sample, 0 a negative one, -1 none.
        names: Where each sentence is from, for messages.
        token_ids: Token ids of each sentence.
        padding_side: Where the tokenizer pads.
        own: First token of each sentence that counts, and the one behind the last; None if all count.
    """

    languages: Sequence[str]
    membership: Sequence[Sequence[int]]
    names: Sequence[str]
    token_ids: Sequence[Sequence[int]]
    padding_side: PaddingSide
    own: Sequence[Span] | None = None

    def tokens(self) -> IntArray:
        """Tokens of every sentence that count, int64 (sentences,)."""
        spans = self.own or [(0, len(ids)) for ids in self.token_ids]
        return np.array([stop - start for start, stop in spans], dtype=np.int64)

    def positives(self) -> NDArray[np.bool_]:
        """Which sentences are a language's own, bool (languages, sentences)."""
        return np.array(self.membership) == POSITIVE

    def samples(self) -> Samples | None:
        """All sentences with their languages, if each is of one language and a negative sample of all others."""
        labels = self._sample_set().labels()
        return None if labels is None else Samples(labels, len(self.languages), self.tokens())

    def samples_of(self, language: int) -> tuple[IntArray, Samples]:
        """The sentences that one language uses: their indices, and as samples of 0, the others, and 1, the language."""
        rows, own = self._sample_set().used_by(language)
        return rows, Samples(own.astype(np.int64), 2, self.tokens()[rows])

    def _sample_set(self) -> SampleSet:
        membership = np.array(self.membership, dtype=np.int8)
        return SampleSet(tuple(self.languages), (), tuple(self.names), membership)

    def identity(self) -> dict[str, Any]:
        """What the activations depend on, JSON values."""
        return {"sentences": digest([self.token_ids, self.own]), "padding_side": self.padding_side}

    def save(self, path: Path) -> None:
        """Write them as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> TokenizedSentences:
        """Read what `save` wrote."""
        return cls(**read_json(path))


def prepare_sentences(options: AnalyzeOptions, metric: NeuronMetric) -> tuple[TokenizedSentences, dict[str, Any]]:
    """Read, sample and tokenise the corpora.

    Returns:
        the sentences, and what a record says of them.

    Raises:
        UserError: for a model that is not there, a corpus that cannot be used, or samples that a metric cannot compare.
    """
    require_model("--model", options.model)
    require_model("--model", options.model, TOKENIZER)
    if options.adapter is not None:
        require_model("--adapter", options.adapter, ADAPTER)
    require_device(options.device)
    corpora, samples = _read(options)
    require_distinct_corpora(corpora)
    if samples.labels() is None and not metric.one_against_rest:
        raise UserError(
            f"--metric {options.metric} compares all languages on the same sentences, but in --concepts "
            f"{options.concepts} each has negatives of its own; use --metric ap"
        )
    # Only now: bad input is answered before the tokenizer's libraries have been imported.
    tokenizer = load_tokenizer(options.model)
    fits = [TokenizerFit.of(tokenizer, [sentence.text for sentence in corpus.sentences]) for corpus in corpora]
    for corpus, fit in zip(corpora, fits, strict=True):
        fit.require(f"--model {options.model}", corpus.language)
    own = None
    if options.chat_template:
        token_ids, own, cut = tokenize_in_chat(tokenizer, samples.texts, options.max_tokens)
    else:
        token_ids, cut = tokenize(tokenizer, samples.texts, options.max_tokens)
    sentences = TokenizedSentences(
        languages=samples.languages,
        membership=samples.membership.tolist(),
        names=samples.names,
        token_ids=token_ids,
        padding_side="left" if tokenizer.padding_side == "left" else "right",
        own=own,
    )
    for name, count in zip(samples.names, sentences.tokens(), strict=True):
        if not count:
            raise UserError(f"{name}: the model's tokenizer gives no token for this sentence; remove it")
    truncated = ((samples.membership == POSITIVE) & np.array(cut)).sum(axis=1).tolist()
    return sentences, {
        "corpora": [_describe(*each) for each in zip(corpora, truncated, fits, strict=True)],
        "shared_sentences": asdict(shared_sentences(corpora)),
    }


def reading_versions(options: AnalyzeOptions) -> dict[str, str]:
    """The versions of libraries on which the sampled sentences depend."""
    from_hub = any(isinstance(spec.source, HubDataset) for spec in options.corpora)
    libraries = [*(["sentencex"] if options.split_sentences else []), *(["datasets"] if from_hub else [])]
    return {name: version(name) for name in libraries}


def _read(options: AnalyzeOptions) -> tuple[Sequence[Corpus], SampleSet]:
    if options.concepts is not None:
        concepts = read_concepts(options.concepts)
        return concepts.corpora, concepts.samples
    sampling = options.sampling()
    corpora = [sample_corpus(spec, **sampling) for spec in options.corpora]
    return corpora, SampleSet.from_corpora(corpora)


def _describe(corpus: Corpus, truncated: int, fit: TokenizerFit) -> dict[str, Any]:
    return {
        "language": corpus.language,
        "path": corpus.path,
        "sha256": corpus.sha256,
        "files": len(corpus.files),
        "available": corpus.available,
        "sampled": len(corpus.sentences),
        "duplicates": corpus.duplicates,
        "truncated": truncated,
        "tokenizer": fit.record(),
        "notes": list(corpus.notes),
    }
