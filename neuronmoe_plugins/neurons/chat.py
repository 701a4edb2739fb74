"""Sentences as a user's message in a model's chat template, and which of the tokens are the sentences' own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from neuronmoe_plugins.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""The first token, and the one behind the last."""
# Of a private use, so that no template has it or strips it.
MARK = "\ue000"


def tokenize_in_chat(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int
) -> tuple[list[list[int]], list[Span], list[bool]]:
    """Token ids of the template around each sentence, which is cut to `max_tokens` of its own.

    Returns:
        the token ids, the places of the sentences' own, and which sentences were cut.

    Raises:
        UserError: if the tokenizer has no template, one that cannot be used, or does not say where its tokens stand.
    """
    if not tokenizer.chat_template or not tokenizer.is_fast:
        lacks = "no fast version, which says where tokens stand" if tokenizer.chat_template else "no chat template"
        raise UserError(f"--chat-template: the tokenizer of {tokenizer.name_or_path} has {lacks}; leave the option out")
    before, chats, after = _render(tokenizer, texts)
    encoded = tokenizer(chats, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    token_ids, spans, cut = [], [], []
    for chat, ids, places in zip(chats, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        end = len(chat) - len(after)
        own = [number for number, (start, stop) in enumerate(places) if stop > len(before) and start < end]
        first, last = (own[0], own[-1] + 1) if own else (0, 0)
        kept = min(last, first + max_tokens)
        token_ids.append([*ids[:kept], *ids[last:]])
        spans.append((first, kept))
        cut.append(kept < last)
    return token_ids, spans, cut


def _render(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[str, list[str], str]:
    """Each text as the only message, of a user; what the template puts before it; and what it puts behind it."""
    chats = [[{"role": "user", "content": text}] for text in (MARK, *texts)]
    try:
        marked, *rendered = [str(tokenizer.apply_chat_template(chat, tokenize=False)) for chat in chats]
        before, after = marked.split(MARK)
        for text, chat in zip(texts, rendered, strict=True):
            if chat.split() != f"{before}{text}{after}".split():
                raise ValueError(f"it does not repeat the message {text[:60]!r}")
    except Exception as error:  # a template is a program of its own
        name = tokenizer.name_or_path
        raise UserError(f"--chat-template: that of {name} cannot be used: {one_line(error)}; leave it out") from error
    return before, rendered, after
