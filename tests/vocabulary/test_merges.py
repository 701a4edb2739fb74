"""Merges that continue a tokenizer's own, against the trainer of `tokenizers` and by their definition."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from greek import ENGLISH, greek_texts

from made_tokenizers import trained_tokenizer
from neuronmoe_plugins.vocabulary.merges import LEAST, Merges, learn_merges
from neuronmoe_plugins.vocabulary.tokenizer import ByteLevelTokenizer, KeptText


@pytest.fixture(scope="module")
def tokenizer() -> ByteLevelTokenizer:
    return ByteLevelTokenizer(trained_tokenizer(ENGLISH, 400), "base")


def ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


def all_allowed(*pair: object) -> bool:
    return True


def test_from_characters_on_it_is_the_trainer_of_tokenizers() -> None:
    """Which cannot go on from other merges; ties and all."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    texts = [*ENGLISH, *greek_texts(100)]
    theirs = Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=600, min_frequency=LEAST, show_progress=False))
    vocabulary = theirs.get_vocab()
    characters = sorted((name for name in vocabulary if len(name) == 1), key=vocabulary.__getitem__)
    words = Counter(word for text in texts for word, _ in theirs.pre_tokenizer.pre_tokenize_str(text))
    known = {character: place for place, character in enumerate(characters)}
    counts = {tuple(known[character] for character in word): count for word, count in words.items()}
    names = {place: character for character, place in known.items()}
    merges = learn_merges(counts, names, len(names), len(vocabulary) - len(names), all_allowed)
    assert merges.tokens == sorted(vocabulary, key=vocabulary.__getitem__)[len(names) :]
    # And it ends where there are no more.
    more = learn_merges(counts, names, len(names), 10**6, all_allowed)
    assert min(more.counts) >= LEAST and more.tokens[: len(merges.tokens)] == merges.tokens


def test_new_tokens_are_cut_into_what_the_old_tokenizer_gives(tokenizer: ByteLevelTokenizer) -> None:
    texts, kept = greek_texts(200), KeptText(tokenizer)
    kept.add(tokenizer.words(ENGLISH))
    merges = learn_merges(Counter(tokenizer.words(texts)), tokenizer.names, tokenizer.first, 80, kept.may_merge)
    new = tokenizer.with_merges(merges)
    old = trained_tokenizer(ENGLISH, 400).backend_tokenizer
    assert ids(new, ENGLISH) == ids(old, ENGLISH)
    others = [*greek_texts(50, seed=1), "λέξεις που δεν είναι εκεί <|turn|> and English"]
    cut = ids(new, others)
    assert [[piece for token in text for piece in merges.pieces_of(token)] for text in cut] == ids(old, others)
    assert sum(map(len, cut)) < sum(map(len, ids(old, others))) / 2
    assert new.token_to_id("<|turn|>") == tokenizer.first - 1
    assert len(merges.tokens) == 80 and not any(tokenizer.knows(name) for name in merges.tokens)


def test_what_stands_in_the_kept_text_is_not_merged(tokenizer: ByteLevelTokenizer) -> None:
    """Also if it is the language to learn; without it, the same merges would cut that text otherwise."""
    texts, quoted = greek_texts(200), ["The Greek word is δικαίωμα, or ελευθερία."]
    words = Counter(tokenizer.words(texts))
    kept = KeptText(tokenizer)
    kept.add(tokenizer.words(quoted))
    merges = learn_merges(words, tokenizer.names, tokenizer.first, 60, kept.may_merge)
    free = learn_merges(words, tokenizer.names, tokenizer.first, 60, all_allowed)
    old = trained_tokenizer(ENGLISH, 400).backend_tokenizer
    assert ids(tokenizer.with_merges(merges), quoted) == ids(old, quoted)
    assert ids(tokenizer.with_merges(free), quoted) != ids(old, quoted)
    assert merges.left_out > 0 and free.left_out == 0
    together = {pair for word in tokenizer.words(quoted) for pair in pairwise(word)}
    assert together.isdisjoint(merges.pairs)


@pytest.mark.parametrize("ignore_merges", [False, True])
def test_a_word_is_not_taken_whole_where_the_tokenizer_ignores_merges(ignore_merges: bool) -> None:
    """As Llama 3's does: a word that is in the vocabulary is one token, whatever it is merged of."""
    loaded = trained_tokenizer(ENGLISH, 400, ignore_merges=ignore_merges)
    tokenizer = ByteLevelTokenizer(loaded, "base")
    # A word of two tokens, the first of two letters: its letters and the second can be merged the other way round, too.
    names = tokenizer.names
    word = next(
        word
        for word in tokenizer.words(ENGLISH)
        if (len(word), len(names[word[0]])) == (2, 2) and not tokenizer.knows(names[word[0]][1] + names[word[1]])
    )
    one, two = (tokenizer.ids[letter] for letter in names[word[0]])
    whole, end = names[word[0]] + names[word[1]], names[word[0]][1] + names[word[1]]
    merges = Merges(tokenizer.first, [(two, word[1]), (one, tokenizer.first)], [end, whole])
    text = [loaded.decode(list(word))]
    changes = ids(tokenizer.with_merges(merges), text) != ids(loaded.backend_tokenizer, text)
    kept = KeptText(tokenizer)
    kept.add([word])
    assert changes is ignore_merges is not kept.may_merge(one, tokenizer.first, whole)


def test_two_ways_to_one_token_give_one_row() -> None:
    names = {0: "a", 1: "b", 2: "c", 3: "ab", 4: "bc"}
    merges = learn_merges({(3, 2): 30, (0, 4): 20, (0, 4, 0): 15}, names, 5, 3, all_allowed)
    assert merges.tokens == ["abc", "abca"]
    assert merges.pairs == [(0, 4), (3, 2), (5, 0)]
    assert merges.pieces == [(0, 4), (0, 4, 0)] and merges.counts == [35, 15]
