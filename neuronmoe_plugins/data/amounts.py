"""How much text a data set is to have: so many documents, sentences, bytes or tokens, or all there is."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

UNITS = ("documents", "sentences", "bytes", "tokens")
ALL = "all"
FACTORS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
NUMBER = re.compile(r"(?P<number>\d[\d_,]*(\.\d+)?)\s*(?P<factor>[kmbgt]?)b?", re.IGNORECASE)


@dataclass(frozen=True)
class Amount:
    """What is asked for.

    Attributes:
        unit: documents, sentences (each of another document), bytes of UTF-8, or tokens without special ones.
        number: How many; None for all there is.
    """

    unit: str
    number: int | None

    @classmethod
    def parse(cls, unit: str, value: object) -> Amount:
        """Read `1000`, `2e9`, `50_000`, `2B`, `500k`, `10MB`, `1.5 GB` or `all`; factors are decimal.

        Raises:
            ValueError: with what the value must be.
        """
        if value == ALL:
            return cls(unit, None)
        number = _number(value)
        if number is None or not math.isfinite(number) or number < 1 or number != int(number):
            raise ValueError(f"must be a whole number from 1 on, such as 50000, 2B or 10MB, or {ALL}; got {value!r}")
        return cls(unit, int(number))

    def __str__(self) -> str:
        return f"{ALL if self.number is None else format(self.number, ',')} {self.unit}"


def _number(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return value
    text = str(value).strip()
    match = NUMBER.fullmatch(text)
    if match is not None:
        digits = match["number"].replace("_", "").replace(",", "")
        # Through integers where there is no fraction, since a float would lose digits beyond 2**53.
        return (float(digits) if "." in digits else int(digits)) * FACTORS[match["factor"].lower()]
    try:
        return float(text)  # YAML reads 2e9 as text
    except ValueError:
        return None
