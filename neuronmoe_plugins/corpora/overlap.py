"""Sentences that more than one language has: counted, or refused where two languages have the same text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from neuronmoe_plugins.corpora.samples import Corpus
from neuronmoe_plugins.errors import UserError

EXAMPLES = 3


@dataclass(frozen=True)
class SharedPair:
    """What two languages share."""

    languages: tuple[str, str]
    count: int
    """Different sentences that both have."""
    examples: tuple[str, ...]
    """The first of them, at most three."""


@dataclass(frozen=True)
class SharedSentences:
    """Sampled sentences that stand in more than one language."""

    count: int
    """Different sentences in more than one language."""
    pairs: tuple[SharedPair, ...]
    """Only those that share any, in the order of the corpora."""


def shared_sentences(corpora: Sequence[Corpus]) -> SharedSentences:
    """Count the sampled sentences that are identical, but for white space around them, in more than one language."""
    texts = {corpus.language: _texts(corpus) for corpus in corpora}
    pairs = []
    for one, other in combinations(texts, 2):
        shared = [text for text in texts[one] if text in texts[other]]
        if shared:
            pairs.append(SharedPair((one, other), len(shared), tuple(shared[:EXAMPLES])))
    languages_of: defaultdict[str, int] = defaultdict(int)
    for own in texts.values():
        for text in own:
            languages_of[text] += 1
    return SharedSentences(sum(count > 1 for count in languages_of.values()), tuple(pairs))


def require_distinct_corpora(corpora: Sequence[Corpus]) -> None:
    """Raise `UserError` if two languages read files of the same content, or have the same sampled sentences."""
    for one, other in combinations(corpora, 2):
        twins = {file.sha256: file.path for file in one.files}
        for file in other.files:
            if file.sha256 in twins and file.sentences:
                raise UserError(
                    f"{twins[file.sha256]} of {one.language} and {file.path} of {other.language} have the same "
                    "content; give each language its own text"
                )
        if _texts(one).keys() == _texts(other).keys():
            raise UserError(
                f"{one.path} of {one.language} and {other.path} of {other.language}: all sampled sentences are the "
                "same; give each language its own text"
            )


def _texts(corpus: Corpus) -> dict[str, None]:
    """The different sentences, in order."""
    return dict.fromkeys(sentence.text.strip() for sentence in corpus.sentences)
