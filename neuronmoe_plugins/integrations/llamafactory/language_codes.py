"""Language codes such as `el`, `pt-BR` or `zh_Hant_TW`, and how easily two of them are taken for one."""

from __future__ import annotations

import re

from neuronmoe_plugins.errors import UserError, did_you_mean

TAGS = ("old", "new")
CODE = re.compile(
    r"(?P<language>[a-z]{2,3})([-_](?P<script>[a-z]{4}))?([-_](?P<region>[a-z]{2}|[0-9]{3}))?", re.IGNORECASE | re.ASCII
)


def is_code(word: str) -> bool:
    """Whether a word has the form of a language code: two or three letters, then perhaps a script and a region."""
    return CODE.fullmatch(word) is not None and word.lower() not in TAGS


def check_code(name: str, word: str) -> None:
    """Refuse what cannot be a language code.

    Raises:
        UserError: naming the argument.
    """
    if not is_code(word):
        raise UserError(f"{name} must list language codes such as en or pt-BR; got {word!r}")


def check_tag(tag: str) -> None:
    """Refuse what is neither `old`, `new` nor a language code.

    Raises:
        UserError: with the one of `old` and `new` that it may have been meant to be.
    """
    if tag not in TAGS and not is_code(tag):
        hint = did_you_mean(tag, TAGS)
        raise UserError(f'"language" must be "old", "new" or a language code such as el or pt-BR; got {tag!r}{hint}')


def twin(code: str, others: list[str]) -> str | None:
    """One of `others` that is `code` but for case, separator or region, or a script that only one of them names."""
    return next((other for other in others if other != code and _is_twin(code, other)), None)


def _is_twin(code: str, other: str) -> bool:
    one, two = CODE.fullmatch(code.lower()), CODE.fullmatch(other.lower())
    if one is None or two is None or one["language"] != two["language"]:
        return False
    return one["script"] == two["script"] or None in (one["script"], two["script"])
