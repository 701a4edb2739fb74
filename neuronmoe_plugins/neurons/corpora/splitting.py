"""Splits texts into sentences by the rules of their language, with the library sentencex."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.corpora.records import Sentence

ISO_639_1 = """
aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo
es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka
kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng
nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su
sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
"""
# sentencex takes any other string for English without a word, "old" and "EL" as well.
LANGUAGE_CODES = frozenset(ISO_639_1.split())


def sentence_splitter(language: str) -> Callable[[Sentence], Iterator[Sentence]]:
    """A function from a text to its sentences, without white space around them; blank ones are left out.

    Args:
        language: name of a corpus that begins with a code of ISO 639-1, as `el`, `zh-cn` and `pt_BR` do. sentencex has
            rules for some thirty languages and the relatives of more; all others, Turkish and Hungarian among them,
            are split by its rules for English, at the sentence ends of every script.

    Raises:
        UserError: `language` begins with no such code.
    """
    import sentencex

    code = language.replace("_", "-").split("-")[0].lower()
    if code not in LANGUAGE_CODES:
        raise UserError(
            f"{language!r} is no language code, by which sentences are split; use the ISO 639-1 code, as in el, or "
            "split the sentences beforehand"
        )

    def split(text: Sentence) -> Iterator[Sentence]:
        parts = (part.strip() for part in sentencex.segment(code, text.text))
        for number, part in enumerate(filter(None, parts), start=1):
            yield Sentence(part, f"{text.name}#{number}")

    return split
