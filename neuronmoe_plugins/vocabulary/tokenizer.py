"""A byte-level BPE tokenizer: the words that it cuts a text into, and the same tokenizer with more merges."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.vocabulary.merges import Merges, Pair, Word

BYTE_LEVEL = "ByteLevel"


class ByteLevelTokenizer:
    """What a model's tokenizer cuts texts into.

    Args:
        loaded: One of transformers.
        model: Folder or hub name of its model.

    Attributes:
        ids: What each token stands for, in the tokenizer's own characters -> its id; added tokens, too.
        names: The same the other way round.
        first: The id behind the last.
        takes_whole_words: Whether a word that is a token is not merged, but taken whole (`ignore_merges`).

    Raises:
        UserError: if it is no byte-level BPE of `tokenizers`.
    """

    def __init__(self, loaded: Any, model: str) -> None:
        backend = getattr(loaded, "backend_tokenizer", None)
        if backend is None:
            raise UserError(f"--model {model}: its tokenizer has no fast version; name a model with a tokenizer.json")
        self._state = json.loads(backend.to_str())
        _require_byte_level(self._state, model)
        # Another one, since it shall neither cut nor pad.
        self._backend = type(backend).from_str(backend.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self.ids: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        self.names = {token_id: name for name, token_id in self.ids.items()}
        self.first = max(self.names) + 1
        self.takes_whole_words = bool(self._state["model"].get("ignore_merges"))

    def knows(self, name: str) -> bool:
        """Whether it has a token of this name."""
        return name in self.ids

    def words(self, texts: Sequence[str]) -> Iterator[Word]:
        """The token ids of every word of the texts."""
        for encoding in self._backend.encode_batch(list(texts), add_special_tokens=False):
            ids, words = encoding.ids, encoding.word_ids
            ends = [place for place, (one, other) in enumerate(pairwise(words), start=1) if one != other]
            for start, end in zip([0, *ends], [*ends, len(ids)], strict=True):
                if end > start:
                    yield tuple(ids[start:end])

    def with_merges(self, merges: Merges) -> Any:
        """The tokenizer of `tokenizers` that applies its own merges first, and then those that were learnt."""
        state = json.loads(json.dumps(self._state))
        model = state["model"]
        # With the added tokens, which otherwise would get the ids behind the last of the vocabulary when it is loaded.
        model["vocab"] = self.ids | {name: merges.first + place for place, name in enumerate(merges.tokens)}
        names = self.names | {token_id: name for name, token_id in model["vocab"].items()}
        model["merges"] += [_merge(names, pair, model["merges"]) for pair in merges.pairs]
        return type(self._backend).from_str(json.dumps(state))


def _merge(names: dict[int, str], pair: Pair, others: Sequence[Any]) -> Any:
    """As the others are written: two names in a list, or with a blank between them."""
    two = [names[token_id] for token_id in pair]
    return " ".join(two) if others and isinstance(others[0], str) else two


def _require_byte_level(state: dict[str, Any], model: str) -> None:
    part = state["model"]
    pre = state["pre_tokenizer"] or {}
    kinds = {each.get("type") for each in (pre, *pre.get("pretokenizers", ()))}
    found = f"a {part['type']}"
    if part["type"] == "BPE":
        if BYTE_LEVEL in kinds and not any(
            part.get(end) for end in ("continuing_subword_prefix", "end_of_word_suffix")
        ):
            return
        found = "of SentencePiece's kind (with byte_fallback)" if part.get("byte_fallback") else "a BPE of characters"
    raise UserError(
        f"--model {model}: its tokenizer is {found}, and merges are learnt for a byte-level BPE alone, as SmolLM2, "
        "Llama 3 and Qwen have; take such a model"
    )


class KeptText:
    """What new merges must leave as it is: the neighbours, and the words, of the text to keep.

    A new merge applies only where no old one does any more. The first that applies in a word therefore has two old
    tokens that stand side by side in the word as the old tokenizer cuts it. Where no such pair is merged, the word
    stays as it is.

    Args:
        tokenizer: The old tokenizer.
    """

    def __init__(self, tokenizer: ByteLevelTokenizer) -> None:
        self._tokenizer = tokenizer
        self._pairs: set[Pair] = set()
        self._words: set[str] = set()

    def add(self, words: Iterable[Word]) -> None:
        """Add words of the text, as ids of the old tokenizer's tokens."""
        for word in set(words):
            self._pairs.update(pairwise(word))
            if self._tokenizer.takes_whole_words and len(word) > 1:  # what is a token by itself is taken whole
                self._words.add("".join(self._tokenizer.names[token_id] for token_id in word))

    def may_merge(self, first: int, second: int, name: str) -> bool:
        """Whether the text stays as it is, and the tokens that are there, with this merge."""
        return (first, second) not in self._pairs and name not in self._words and not self._tokenizer.knows(name)
