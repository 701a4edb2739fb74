"""From corpora to tokenised sentences, and what the summary says about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np

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
from neuronmoe_plugins.neurons.metrics import NeuronMetric
from neuronmoe_plugins.neurons.options import AnalyzeOptions
from neuronmoe_plugins.neurons.sentences import TokenizedSentences


def prepare_sentences(options: AnalyzeOptions, metric: NeuronMetric) -> tuple[TokenizedSentences, dict[str, Any]]:
    """Read, sample and tokenise the corpora.

    Returns:
        the sentences, and the part of the summary that describes them.

    Raises:
        UserError: for a corpus that cannot be used, or a metric that cannot compare the samples.
    """
    corpora, samples = _read(options)
    require_distinct_corpora(corpora)
    if samples.labels() is None and not metric.one_against_rest:
        raise UserError(
            f"--metric {options.metric} compares all languages on the same sentences, but in --concepts "
            f"{options.concepts} each has negatives of its own; use --metric ap"
        )
    # Only now: bad input is answered before the tokenizer's libraries have been imported.
    from neuronmoe_plugins.neurons.loading import load_tokenizer, tokenize

    tokenizer = load_tokenizer(options.model)
    token_ids, cut = tokenize(tokenizer, samples.texts, samples.names, options.max_tokens)
    sentences = TokenizedSentences(
        languages=samples.languages,
        membership=samples.membership.tolist(),
        names=samples.names,
        token_ids=token_ids,
        padding_side="left" if tokenizer.padding_side == "left" else "right",
    )
    truncated = ((samples.membership == POSITIVE) & np.array(cut)).sum(axis=1)
    return sentences, {
        "corpora": [_describe(corpus, int(count)) for corpus, count in zip(corpora, truncated, strict=True)],
        "shared_sentences": asdict(shared_sentences(corpora)),
        "reading_versions": {name: version(name) for name in _libraries(options)},
    }


def _read(options: AnalyzeOptions) -> tuple[Sequence[Corpus], SampleSet]:
    if options.concepts is not None:
        concepts = read_concepts(options.concepts)
        return concepts.corpora, concepts.samples
    sampling = options.sampling()
    corpora = [sample_corpus(spec, **sampling) for spec in options.corpora]
    return corpora, SampleSet.from_corpora(corpora)


def _describe(corpus: Corpus, truncated: int) -> dict[str, Any]:
    return {
        "language": corpus.language,
        "path": corpus.path,
        "sha256": corpus.sha256,
        "files": len(corpus.files),
        "available": corpus.available,
        "sampled": len(corpus.sentences),
        "duplicates": corpus.duplicates,
        "truncated": truncated,
    }


def _libraries(options: AnalyzeOptions) -> list[str]:
    """Libraries on which the sampled sentences depend."""
    from_hub = any(isinstance(spec.source, HubDataset) for spec in options.corpora)
    return [*(["sentencex"] if options.split_sentences else []), *(["datasets"] if from_hub else [])]
