"""A tokenizer as GGUF files have it: byte-level BPE, with the name by which llama.cpp knows how text is cut before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.loading import load_tokenizer

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How text is cut, as `_cuts` says it -> its name in llama.cpp.
PRE_TOKENIZERS = {
    ("ByteLevel False True",): "gpt-2",
    ("Digits True", "ByteLevel False True"): "smollm",
    (f"Split {_WORDS % '{1,3}'} Isolated False", "ByteLevel False False"): "llama-bpe",
    (f"Split {_WORDS % ''} Isolated False", "ByteLevel False False"): "qwen2",
}
# Under which it takes a word that is a token as it is, whatever the merges.
IGNORES_MERGES = "llama-bpe"


def add_tokenizer(writer: GGUFWriter, name: str, flag: str, vocab_size: int) -> None:
    """Write a tokenizer into the head of a file, as llama.cpp's own converter does.

    Args:
        writer: Of the file.
        name: Folder or hub name of the tokenizer.
        flag: What named it.
        vocab_size: Rows of the model's embedding; those without a token become unused ones.

    Raises:
        UserError: if it cannot be had, or llama.cpp would cut texts in other tokens.
    """
    tokenizer = load_tokenizer(name, flag)
    place = f"{flag} {name}"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"{place}: its tokenizer has no tokenizer.json, which a GGUF file is written from")
    content = json.loads(backend.to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(place, content))
    tokens, kinds = _tokens(place, content, vocab_size)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in content["model"]["merges"]])
    for kind in ("bos", "eos", "unk", "pad"):
        token = getattr(tokenizer, f"{kind}_token_id")
        if token is not None:
            getattr(writer, f"add_{kind}_token_id")(token)
    writer.add_add_bos_token(_adds_bos(place, tokenizer))
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _pre_tokenizer(place: str, content: dict[str, Any]) -> str:
    model, cuts = content["model"], tuple(_cuts(content["pre_tokenizer"]))
    if model["type"] != "BPE" or not model["merges"] or not cuts or not cuts[-1].startswith("ByteLevel"):
        raise UserError(f"{place}: its tokenizer is not byte-level BPE with merges, which alone is written as GGUF")
    name = PRE_TOKENIZERS.get(cuts)
    if name is None:
        known = ", ".join(PRE_TOKENIZERS.values())
        raise UserError(
            f"{place}: its tokenizer cuts texts by {'; '.join(cuts)}, which is none of those of llama.cpp that are "
            f"written ({known})"
        )
    normalizer = (content["normalizer"] or {}).get("type")
    if normalizer not in (None, "NFC" if name == "qwen2" else None):
        raise UserError(f"{place}: its tokenizer changes texts by {normalizer}, which llama.cpp does not")
    if bool(model.get("ignore_merges")) != (name == IGNORES_MERGES):
        raise UserError(f"{place}: ignore_merges of its tokenizer is not what llama.cpp has for {name}")
    return name


def _cuts(part: dict[str, Any] | None) -> Iterator[str]:
    """What cuts a text into words, one after the other."""
    if part is None:
        return
    if part["type"] == "Sequence":
        for each in part["pretokenizers"]:
            yield from _cuts(each)
    elif part["type"] == "Split":
        pattern = part["pattern"].get("Regex", part["pattern"])
        yield f"Split {pattern} {part['behavior']} {part['invert']}"
    else:
        settings = ("individual_digits",) if part["type"] == "Digits" else ("add_prefix_space", "use_regex")
        yield " ".join([part["type"], *(str(part.get(setting)) for setting in settings)])


def _tokens(place: str, content: dict[str, Any], vocab_size: int) -> tuple[list[str], list[TokenType]]:
    """Texts and kinds by id."""
    texts = {number: text for text, number in content["model"]["vocab"].items()}
    kinds = dict.fromkeys(texts, TokenType.NORMAL)
    for added in content["added_tokens"]:
        if added["lstrip"] or added["rstrip"] or added["single_word"]:
            raise UserError(f"{place}: its token {added['content']} takes the blanks beside it, or stands alone")
        texts[added["id"]] = added["content"]
        kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    if max(texts) >= vocab_size:
        raise UserError(f"{place}: its tokenizer has a token {max(texts)}, and the model has {vocab_size} tokens")
    ids = range(vocab_size)
    return [texts.get(i, f"[PAD{i}]") for i in ids], [kinds.get(i, TokenType.UNUSED) for i in ids]


def _adds_bos(place: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it puts a first token before every text; raises `UserError` if it puts others around it."""
    with_special, plain = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    if with_special not in (plain, [tokenizer.bos_token_id, *plain]):
        raise UserError(f"{place}: its tokenizer puts more around a text than a first token, and llama.cpp does not")
    return bool(with_special != plain)
