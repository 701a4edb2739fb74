"""Batches as the model receives them in LLaMA-Factory's training loop, and what their tags should be by their text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import train

OLD, NEW, PADDING = (1, 0), (0, 1), (0, -100)
# Language mask and group that a token may have.
TAGS_OF = {"old": [OLD], "new": [NEW], "padding": [PADDING], "end of the block before": [OLD, NEW]}
TAGS = {
    "generate_lang_mask": True,
    "lpr_loss_coef": 0.1,
    "sequential_add_mask": True,
    "sequential_add_loss_coef": 0.1,
}
Batches = list[dict[str, Any]]


def received_batches(args: dict[str, Any], output: Path, **overrides: Any) -> tuple[Batches, Batches]:
    """Train in this process; returns the batches of training and of evaluation, after they were collated."""
    from transformers import Trainer

    recorded: tuple[Batches, Batches] = ([], [])
    with pytest.MonkeyPatch.context() as patch:
        for name, batches in zip(("training_step", "prediction_step"), recorded, strict=True):
            patch.setattr(Trainer, name, _recording(getattr(Trainer, name), batches))
        train(args, output, **overrides)
    return recorded


def wrong_tags(batch: dict[str, Any], tokenizer: Any) -> list[str]:
    """Every token whose tags are not those of the letters that it is a part of, in words."""
    wrong = []
    for row, token_ids in enumerate(batch["input_ids"].tolist()):
        for place, source in enumerate(sources_of(token_ids, tokenizer)):
            tags = tuple(batch[name][row, place].item() for name in ("old_language_mask", "group_tags"))
            if tags not in TAGS_OF[source]:
                wrong.append(f"token {place} of row {row} is {source}, but its tags are {tags}")
    return wrong


def sources_of(token_ids: list[int], tokenizer: Any) -> list[str]:
    """What each token is a part of: Latin letters are `old`, all others `new`; an EOS is as the token before it."""
    sources: list[str] = []
    for token in tokenizer.convert_ids_to_tokens(token_ids):
        if token == "<pad>":
            sources.append("padding")
        elif token == "</s>":
            sources.append(sources[-1] if sources else "end of the block before")
        else:
            sources.append("old" if token.isascii() and token.isalpha() else "new")
    return sources


def _recording(step: Any, batches: Batches) -> Any:
    def record(trainer: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        batches.append({name: value.clone() for name, value in inputs.items() if isinstance(value, torch.Tensor)})
        return step(trainer, model, inputs, *args, **kwargs)

    return record
