"""How a tokenizer fits a text, against counts by hand."""

from __future__ import annotations

from typing import Any

import pytest

from made_tokenizers import fast_tokenizer, word_tokenizer
from neuronmoe_plugins import tokenizer_fit
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.tokenizer_fit import TokenizerFit

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


@pytest.fixture(scope="module")
def bytes_() -> Any:
    """A token per byte."""
    from tokenizers import decoders, models, pre_tokenizers

    vocabulary = {symbol: number for number, symbol in enumerate(SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    return fast_tokenizer(
        models.BPE(vocabulary, []), pre_tokenizers.ByteLevel(add_prefix_space=True), None, decoders.ByteLevel()
    )


def letters(alphabet: str, normalizer: Any = None, **more: Any) -> Any:
    """A token per letter of an alphabet; others are dropped, or unknown with `unk_token`."""
    from tokenizers import models

    vocabulary = {symbol: number for number, symbol in enumerate(SPECIAL + sorted(set(alphabet)))}
    return fast_tokenizer(models.BPE(vocabulary, [], **more), normalizer=normalizer)


def test_unknown_words_are_counted_and_their_characters_do_not_come_back() -> None:
    fit = TokenizerFit.of(word_tokenizer(["one", "two"]), ["one two three", "two four"])
    assert fit == TokenizerFit(texts=2, characters=18, lost=9, words=5, bytes=21, tokens=5, unknown=2)
    assert (fit.unknown_share, fit.lost_share) == (0.4, 0.5)
    assert fit.cells() == ["1.00", "0.24", "4.20", "40.0%", "50.0%"]
    assert TokenizerFit.load(fit.record()) == fit


def test_a_token_per_byte_loses_nothing_and_is_long(bytes_: Any) -> None:
    fit = TokenizerFit.of(bytes_, ["Καλημέρα κόσμε", "good\tday 🙂"])
    # A space before each text.
    assert (fit.words, fit.bytes, fit.tokens, fit.unknown, fit.lost) == (5, 40, 42, 0, 0)
    assert fit.record()["tokens_per_word"] == 42 / 5
    assert fit.record()["bytes_per_token"] == 40 / 42
    assert fit.words_and_bytes() == "8.40 tokens per word, 1.05 per byte"


def test_letters_that_a_tokenizer_drops_do_not_come_back() -> None:
    """Without a token for what is unknown, there is none to count."""
    fit = TokenizerFit.of(letters("abc "), ["abc dab", "cbaz"])
    assert (fit.unknown, fit.lost, fit.tokens, fit.characters) == (0, 2, 9, 10)
    counted = TokenizerFit.of(letters("abc ", unk_token="<unk>"), ["abc dab", "cbaz"])
    assert (counted.unknown, counted.lost, counted.tokens) == (2, 2, 11)


def test_what_a_tokenizer_changes_on_purpose_is_not_lost() -> None:
    from tokenizers import normalizers

    lower = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    fit = TokenizerFit.of(letters("abcé", lower), ["Abc E\u0301\u00ad\n"])
    assert (fit.lost, fit.characters) == (0, 4)


def test_accents_that_are_stripped_are_lost() -> None:
    from tokenizers import normalizers

    strip = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    fit = TokenizerFit.of(letters("abcoe", strip), ["bőcő"])
    assert fit.lost == 2


@pytest.mark.parametrize(
    "text", ["我们的语言没有空格", "これは日本語の文章です。", "ภาษาไทยไม่มีช่องว่าง", "ພາສາລາວ", "ភាសាខ្មែរ"]
)
def test_scripts_without_spaces_have_no_words(bytes_: Any, text: str) -> None:
    fit = TokenizerFit.of(bytes_, [text])
    assert fit.words is None
    assert fit.record()["tokens_per_word"] is None
    assert fit.cells()[0] == "-"
    assert TokenizerFit.of(bytes_, ["한국어에는 띄어쓰기가 있습니다", "Κείμενο με 漢字"]).words == 6


def test_special_tokens_in_a_text_come_back() -> None:
    fit = TokenizerFit.of(word_tokenizer(["hello"]), ["<s>hello</s>"])
    assert (fit.lost, fit.unknown) == (0, 0)


def test_the_sample_is_bounded_and_spread(bytes_: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_fit, "MOST_TEXTS", 10)
    fit = TokenizerFit.of(bytes_, ["a" * 5000] * 8 + ["δ"] * 8)
    assert fit.texts == 10
    assert 2 * 1000 + 8 * 2 <= fit.bytes <= 8 * 1000 + 2 * 2
    assert TokenizerFit.of(bytes_, []).cells() == ["-", "-", "-", "0.0%", "0.0%"]


@pytest.mark.parametrize(("unknown", "warned"), [(1, False), (2, True), (10, True)])
def test_warns_above_one_per_cent(unknown: int, warned: bool) -> None:
    fit = TokenizerFit(texts=1, characters=100, lost=0, words=100, bytes=100, tokens=100, unknown=unknown)
    assert (fit.warning("model M", "el") is not None) == warned
    fit.require("model M", "el")


@pytest.mark.parametrize(("lost", "unknown"), [(11, 0), (0, 11)])
def test_refusal_is_one_line(lost: int, unknown: int) -> None:
    fit = TokenizerFit(texts=1, characters=100, lost=lost, words=100, bytes=100, tokens=100, unknown=unknown)
    with pytest.raises(UserError) as caught:
        fit.require("--model M", "el")
    assert str(caught.value) == (
        f"--model M: its tokenizer does not know all of el: {unknown}.0% of the tokens are unknown, and {lost}.0% of "
        "the characters do not come back when the tokens are decoded; take a model whose tokenizer has this script, "
        "put the right tokenizer into its folder, or mend the text"
    )
