"""Byte-pair merges that continue a tokenizer's own (Purason et al. 2025, arXiv 2512.03989: continued BPE training).

The trainer of `tokenizers` starts from single characters, and can leave no merge out. This one starts from the words as
the tokenizer cuts them, and does not learn what may not be merged. As there, the most frequent pair of neighbours
within a word is merged next, everywhere, and becomes a token.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import pairwise

Word = tuple[int, ...]
"""Token ids of what the tokenizer does not merge across, such as a word with the space before it."""
Pair = tuple[int, int]
LEAST = 10
"""So often a pair must stand in the text: a row that is seen less often learns little."""


@dataclass
class Merges:
    """What was learnt.

    Attributes:
        first: Id of the first new token.
        pairs: Ids of the two tokens of every merge, in the order in which they apply.
        tokens: What each new token stands for, in the tokenizer's own characters; the first has the id `first`.
        pieces: Ids of the old tokens that each new one replaces.
        counts: How often each stood in the text when it was learnt.
        left_out: Pairs that would have been merged, but may not be.
    """

    first: int
    pairs: list[Pair] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    pieces: list[Word] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    left_out: int = 0

    def pieces_of(self, token: int) -> Word:
        """Ids of the old tokens that a token, old or new, consists of."""
        return (token,) if token < self.first else self.pieces[token - self.first]


def learn_merges(
    words: Mapping[Word, int],
    names: Mapping[int, str],
    first: int,
    wanted: int,
    may_merge: Callable[[int, int, str], bool],
    advance: Callable[[int], object] = lambda count: None,
) -> Merges:
    """Learn new tokens, as many as are wanted or as there are pairs that stand in the text `LEAST` times.

    Args:
        words: Every word of the text, as ids of the tokenizer's tokens, and how often it stands there.
        names: Id of every token -> what it stands for, in the tokenizer's own characters.
        first: Id of the first new token; all others are below it.
        wanted: New tokens.
        may_merge: Whether two tokens may become the one that is named third.
        advance: Is told of new tokens.
    """
    merges, text = Merges(first), _Text(words)
    known = dict(names)
    refused: set[Pair] = set()
    ids: dict[str, int] = {}
    learnt: dict[Pair, int] = {}
    while len(merges.tokens) < wanted and (found := text.most_frequent(refused)) is not None:
        pair, count = found
        name = known[pair[0]] + known[pair[1]]
        if pair not in learnt:
            if not may_merge(*pair, name):
                refused.add(pair)
                continue
            if name not in ids:  # else it is another way to a token that is there
                ids[name] = first + len(ids)
                known[ids[name]] = name
                merges.tokens.append(name)
                merges.pieces.append(merges.pieces_of(pair[0]) + merges.pieces_of(pair[1]))
                merges.counts.append(count)
                advance(1)
            learnt[pair] = ids[name]
            merges.pairs.append(pair)
        text.merge(pair, learnt[pair])
    merges.left_out = len(refused)
    return merges


class _Text:
    """Words whose tokens are merged, and how often each pair of neighbours stands in them."""

    def __init__(self, words: Mapping[Word, int]) -> None:
        self._words: list[Sequence[int]] = list(words)
        self._times = list(words.values())
        self._counts: dict[Pair, int] = defaultdict(int)
        # Words that have, or had, a pair.
        self._places: dict[Pair, set[int]] = defaultdict(set)
        for place, word in enumerate(self._words):
            for pair in pairwise(word):
                self._counts[pair] += self._times[place]
                self._places[pair].add(place)
        # Counts that may be above the present ones, never below.
        self._heap = [(-count, pair) for pair, count in self._counts.items() if count >= LEAST]
        heapify(self._heap)

    def most_frequent(self, refused: set[Pair]) -> tuple[Pair, int] | None:
        """The pair that stands in the text most often, of equal ones that with the lowest ids, and its count."""
        while self._heap:
            count, pair = heappop(self._heap)
            now = self._counts.get(pair, 0)
            if pair in refused or now < LEAST:
                continue
            if now == -count:
                return pair, now
            heappush(self._heap, (-now, pair))
        return None

    def merge(self, pair: Pair, token: int) -> None:
        """Put a token in the place of a pair, in all words."""
        grown = set()
        for place in self._places.pop(pair):
            old, times = self._words[place], self._times[place]
            new = _merged(old, pair, token)
            if len(new) == len(old):
                continue
            for each in pairwise(old):
                self._counts[each] -= times
            for each in pairwise(new):
                self._counts[each] += times
                if token in each:
                    self._places[each].add(place)
                    grown.add(each)
            self._words[place] = new
        self._counts.pop(pair, None)
        for each in grown:
            if self._counts[each] >= LEAST:
                heappush(self._heap, (-self._counts[each], each))


def _merged(word: Sequence[int], pair: Pair, token: int) -> list[int]:
    merged: list[int] = []
    place, last = 0, len(word) - 1
    while place <= last:
        found = place < last and word[place] == pair[0] and word[place + 1] == pair[1]
        merged.append(token if found else word[place])
        place += 2 if found else 1
    return merged
