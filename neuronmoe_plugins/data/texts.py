"""The form in which texts are compared and written, and the keys by which they are drawn."""

from __future__ import annotations

import unicodedata
from hashlib import blake2b

KEY_BYTES = 8


class Keys:
    """Keys of texts: equal texts have equal ones, and different texts are in a random order by theirs.

    Keeping the documents with the smallest keys is so a uniform sample of the different documents, whichever files
    hold them, and in whatever order these are read. Two different texts have the same key, and so count as one, with a
    probability of 5e-20; among 100 million texts one such pair is to be expected in 3,700 draws of a seed.

    Args:
        seed: Of the order.
    """

    def __init__(self, seed: int) -> None:
        self._key = str(seed).encode()

    def of(self, encoded: bytes) -> int:
        """The key, from 0 to 2**64 - 1, of a text in UTF-8."""
        return int.from_bytes(blake2b(encoded, digest_size=KEY_BYTES, key=self._key).digest(), "big")


def normalise(text: str, form: str) -> str:
    """The text without white space around it, in a Unicode form (`NFC`, `NFKC`), or as it stands (`none`)."""
    text = text.strip()
    return text if form == "none" else unicodedata.normalize(form, text)  # type: ignore[arg-type]
