"""The sentences that are run through the model, and for which languages each is a positive or a negative sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuronmoe_plugins.neurons.corpora.records import Sentence
from neuronmoe_plugins.neurons.corpora.sampling import Corpus

POSITIVE, NEGATIVE, UNUSED = 1, 0, -1


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
        cls,
        languages: Sequence[str],
        positives: Sequence[Sequence[Sentence]],
        negatives: Sequence[Sequence[Sentence]],
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
