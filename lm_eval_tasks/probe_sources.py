"""Read the probes' questions out of the packages that hold them: EXAMS from `evals`, capitals from KGeography."""

from __future__ import annotations

import gettext
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypedDict
from xml.etree import ElementTree

from neuronmoe_plugins.errors import UserError

CAPITAL_LANGUAGES = ("el", "tr", "hu", "es")
DISTRACTORS = 3

WORLD = "world.kgm"
# A country on several of these maps belongs to the first.
CONTINENTS = ("europe.kgm", "asia.kgm", "africa.kgm", "ncamerica.kgm", "southamerica.kgm", "oceania.kgm")

# Named wrongly or not at all in Turkish, which no rule can tell: many names are the same in several languages.
MISTRANSLATED = frozenset({"East Timor", "French Guiana"})


class Question(TypedDict):
    """One line of a file of questions."""

    question: str
    choices: list[str]
    answer: int
    """Index of the right choice."""


class Country(NamedTuple):
    """A country and its capital, as one language calls them."""

    name: str
    capital: str


def read_exams(text: str, source: str) -> list[Question]:
    """Read the EXAMS questions of one language.

    Args:
        text: JSON lines of the `evals` package: a chat whose last message is the question, a line `A. …` for every
            choice and a line `Answer:`; and `ideal`, the right letter in square brackets.
        source: Name of the file, for messages.

    Returns:
        The questions, in order.

    Raises:
        UserError: if a line has another form.
    """
    lines = text.split("\n")  # splitlines() would also split inside a text
    return [_read_exam(line, f"{source}:{number}") for number, line in enumerate(lines, start=1) if line]


def _read_exam(line: str, place: str) -> Question:
    try:
        record = json.loads(line)
        question, *choices, _ = record["input"][-1]["content"].split("\n")
        letters = [choice[:2] for choice in choices]
        if letters != [f"{letter}." for letter in "ABCDEFGH"[: len(choices)]]:
            raise ValueError("its choices are not lettered from A")
        answer = letters.index(f"{record['ideal'].strip('[]')}.")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{place}: not a question as evals 3.0.1 writes it: {error}") from error
    return {"question": question.strip(), "choices": [choice[2:].strip() for choice in choices], "answer": answer}


def read_capitals(usr_share: Path) -> dict[str, list[Question]]:
    """Make the questions for capitals; they are the same, with the same distractors, in every language.

    Left out are countries without a translation into one of the languages or with a wrong one, those on no map of a
    continent, those with several capitals, and those whose capital repeats their name and so could be copied.

    Args:
        usr_share: `usr/share` of the Debian package `kgeography-data`.

    Returns:
        Language -> questions, in the order of the map; a question is a country's name, the choices are capitals of the
        same continent.

    Raises:
        UserError: if a file is missing or is no map.
    """
    countries = dict(_read_map(usr_share / "kgeography" / WORLD))
    continents = _read_continents(usr_share / "kgeography", countries)
    asked = _translate_all(usr_share, [country for country in countries.items() if country[0] in continents])
    choices = {name: _choose(name, asked, continents) for name in asked}
    return {
        language: [
            {
                "question": asked[name][language].name,
                "choices": [asked[other][language].capital for other in choices[name]],
                "answer": choices[name].index(name),
            }
            for name in asked
        ]
        for language in CAPITAL_LANGUAGES
    }


def _translate_all(usr_share: Path, countries: Iterable[tuple[str, str]]) -> dict[str, dict[str, Country]]:
    """English name -> language -> country, of those that can be asked in every language."""
    translations = {language: _read_translation(usr_share, language) for language in CAPITAL_LANGUAGES}
    asked = {}
    for country in map(Country._make, countries):
        names = {language: _translate(country, translation) for language, translation in translations.items()}
        several_capitals = " and " in country.capital
        if (
            country.name not in MISTRANSLATED
            and not several_capitals
            and all(map(_can_be_asked, (country, *names.values())))
        ):
            asked[country.name] = names
    return asked


def _read_map(path: Path) -> Iterator[Country]:
    """The English names of a map's countries that have a capital."""
    try:
        divisions = ElementTree.parse(path).getroot().iter("division")
    except (OSError, ElementTree.ParseError) as error:
        raise UserError(f"{path} cannot be read as a map of KGeography: {error}") from error
    for division in divisions:
        name, capital = division.findtext("name"), division.findtext("capital")
        if name and capital and division.findtext("ignore") is None:
            yield Country(name, capital)


def _read_continents(maps: Path, countries: Mapping[str, str]) -> dict[str, str]:
    """Country -> map of its continent, where it may have another name but then has the same capital."""
    by_capital = {capital: name for name, capital in countries.items()}
    continents: dict[str, str] = {}
    for file in CONTINENTS:
        for country in _read_map(maps / file):
            name = country.name if country.name in countries else by_capital.get(country.capital)
            if name is not None:
                continents.setdefault(name, file)
    return continents


class _Untranslated(gettext.NullTranslations):
    """Tells a message without a translation, which gettext would give back in English."""

    def pgettext(self, context: str, message: str) -> str:
        return ""


def _read_translation(usr_share: Path, language: str) -> gettext.NullTranslations:
    path = usr_share / "locale" / language / "LC_MESSAGES" / "kgeography.mo"
    try:
        with path.open("rb") as file:
            translation = gettext.GNUTranslations(file)
    except OSError as error:
        raise UserError(f"{path} cannot be read as a translation: {error}") from error
    translation.add_fallback(_Untranslated())
    return translation


def _translate(country: Country, translation: gettext.NullTranslations) -> Country:
    return Country._make(translation.pgettext(WORLD, text).strip() for text in country)


def _can_be_asked(country: Country) -> bool:
    """Whether neither name is part of the other; a missing one, which is empty, is part of any."""
    name, capital = country.name.casefold(), country.capital.casefold()
    return name not in capital and capital not in name


def _choose(country: str, countries: Mapping[str, object], continents: Mapping[str, str]) -> list[str]:
    """A country and three others of its continent, in an order that depends on the English names alone."""
    others = [name for name in countries if name != country and continents[name] == continents[country]]
    others.sort(key=lambda other: _digest("distractor", country, other))
    return sorted([country, *others[:DISTRACTORS]], key=lambda other: _digest("order", country, other))


def _digest(*words: str) -> bytes:
    """A hash instead of a seeded shuffle, whose order may change with Python's version."""
    return hashlib.sha256("\0".join(words).encode()).digest()
