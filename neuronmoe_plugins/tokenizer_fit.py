"""How a tokenizer fits a text: tokens per word and byte, unknown tokens, and characters that do not come back.

All that tokenises measures it on a bounded sample, warns, refuses what a model would not learn from, and records it. A
character comes back if it is among those that the text's tokens are decoded to. White space, invisible characters,
case and Unicode form (NFKC) do not count, since tokenizers change them on purpose; accents do.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from random import Random
from typing import Any

from neuronmoe_plugins.errors import UserError

MOST_TEXTS = 500
MOST_CHARACTERS = 1000
"""Of each text, from its beginning."""
WARNED, REFUSED = 0.01, 0.1
INVISIBLE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u00ad\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]+")
# Thai, Lao, Tibetan, Burmese, Khmer, kana, and the characters that Chinese and Japanese share.
UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
LETTER = re.compile(r"[^\W\d_]")
HEADER = ("tokens per word", "tokens per byte", "bytes per token", "unknown tokens", "lost characters")
NONE = "-"


@dataclass(frozen=True)
class TokenizerFit:
    """What was counted in a sample of a text.

    Attributes:
        texts: Documents or sentences of the sample, each up to `MOST_CHARACTERS` long.
        characters: Those that count.
        lost: How many of them do not come back.
        words: Between white space; None where most letters are of scripts that set no spaces between words.
        bytes: Of UTF-8.
        tokens: Without special ones.
        unknown: How many of them are the tokenizer's token for what it does not know.
    """

    texts: int
    characters: int
    lost: int
    words: int | None
    bytes: int
    tokens: int
    unknown: int

    @classmethod
    def of(cls, tokenizer: Any, texts: Sequence[str]) -> TokenizerFit:
        """Measure at most `MOST_TEXTS` of the texts, always the same.

        Args:
            tokenizer: One of transformers.
            texts: All of one language, or of one data set.
        """
        places = Random(0).sample(range(len(texts)), min(len(texts), MOST_TEXTS))
        sample = [texts[place][:MOST_CHARACTERS] for place in places]
        token_ids = tokenizer(sample, add_special_tokens=False, verbose=False)["input_ids"] if sample else []
        known = [_visible(text) for text in sample]
        joined = "".join(sample)
        return cls(
            texts=len(sample),
            characters=sum(map(len, known)),
            lost=sum(_lost(tokenizer, text, ids) for text, ids in zip(known, token_ids, strict=True)),
            words=None if _is_unspaced(joined) else sum(len(text.split()) for text in sample),
            bytes=len(joined.encode()),
            tokens=sum(map(len, token_ids)),
            unknown=sum(ids.count(tokenizer.unk_token_id) for ids in token_ids),
        )

    @classmethod
    def load(cls, record: Mapping[str, Any]) -> TokenizerFit:
        """From what :meth:`record` gave."""
        return cls(**{each.name: record[each.name] for each in fields(cls)})

    def record(self) -> dict[str, Any]:
        """All counts and what follows from them, JSON values; None where there is nothing to divide by."""
        return {
            **asdict(self),
            "tokens_per_word": self.tokens / self.words if self.words else None,
            "tokens_per_byte": self.tokens / self.bytes if self.bytes else None,
            "bytes_per_token": self.bytes / self.tokens if self.tokens else None,
            "unknown_share": self.unknown_share,
            "lost_share": self.lost_share,
        }

    @property
    def unknown_share(self) -> float:
        """Of the tokens."""
        return self.unknown / self.tokens if self.tokens else 0.0

    @property
    def lost_share(self) -> float:
        """Of the characters."""
        return self.lost / self.characters if self.characters else 0.0

    def cells(self) -> list[str]:
        """What a table shows under `HEADER`."""
        record = self.record()
        numbers = [record[name.replace(" ", "_")] for name in HEADER[:3]]
        shown = [NONE if number is None else f"{number:.2f}" for number in numbers]
        return [*shown, f"{self.unknown_share:.1%}", f"{self.lost_share:.1%}"]

    def words_and_bytes(self) -> str:
        """In words, how many tokens each has."""
        per_word, per_byte, *_ = self.cells()
        return f"{per_word} tokens per word, {per_byte} per byte"

    def warning(self, tokenizer: str, text: str) -> str | None:
        """A line for a fit that is bad, None for one that is not.

        Args:
            tokenizer: Where it is from, as the user knows it.
            text: What the texts are.
        """
        if max(self.unknown_share, self.lost_share) <= WARNED:
            return None
        return (
            f"{tokenizer}: its tokenizer does not know all of {text}: {self.unknown_share:.1%} of the tokens are "
            f"unknown, and {self.lost_share:.1%} of the characters do not come back when the tokens are decoded"
        )

    def require(self, tokenizer: str, text: str) -> None:
        """Raise `UserError` for a fit so bad that a model would learn something else; arguments as of `warning`."""
        if max(self.unknown_share, self.lost_share) > REFUSED:
            raise UserError(
                f"{self.warning(tokenizer, text)}; take a model whose tokenizer has this script, put the right "
                "tokenizer into its folder, or mend the text"
            )


def _visible(text: str) -> str:
    """What counts of a text, as it is compared."""
    return INVISIBLE.sub("", unicodedata.normalize("NFKC", text).casefold())


def _lost(tokenizer: Any, known: str, token_ids: Sequence[int]) -> int:
    """How many characters of a text are not among those that its tokens are decoded to."""
    # Without the unknown, whose name is no part of the text, but with special tokens that stand in the text.
    told = [token_id for token_id in token_ids if token_id != tokenizer.unk_token_id]
    back = _visible(tokenizer.decode(told, clean_up_tokenization_spaces=False))
    return 0 if back == known else (Counter(known) - Counter(back)).total()


def _is_unspaced(text: str) -> bool:
    letters = len(LETTER.findall(text))
    return 2 * len(UNSPACED.findall(text)) > letters
