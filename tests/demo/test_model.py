"""The tokenizer is read from the GGUF file itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGUFWriter
from tokenizers.pre_tokenizers import ByteLevel
from transformers import modeling_gguf_pytorch_utils

from neuronmoe_plugins.demo.model import read_tokenizer
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.progress import without_transformers_bars

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGED = ["he", "12", "Ġhe"]
MERGES = ["h e", "1 2", "Ġ he"]


def write_gguf(path: Path, pre: str) -> Path:
    tokens = [*CONTROL, *sorted(ByteLevel.alphabet()), *MERGED]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in CONTROL else 1 for token in tokens])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ messages }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_tokenizer_of_a_gguf_file(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(write_gguf(tmp_path / "model.gguf", "smollm"))

    # Digits are split, so "12" is never merged; nothing is added; special tokens are one token each.
    assert tokenizer.tokenize("he he12<|im_end|>") == ["he", "Ġhe", "1", "2", "<|im_end|>"]
    text = "Γειά σου, κόσμε!\n\t 3 x"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) == len(CONTROL) + 256 + len(MERGED)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    tokenizer.save_pretrained(tmp_path / "saved")
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (loaded.eos_token, loaded.pad_token) == ("<|im_end|>", "<|im_end|>")


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its tokenizer is 'llama-bpe', not 'smollm'"):
        read_tokenizer(write_gguf(tmp_path / "model.gguf", "llama-bpe"))


def test_a_gguf_file_is_read_without_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with without_transformers_bars():
        assert list(modeling_gguf_pytorch_utils.tqdm([1, 2], desc="converting")) == [1, 2]
    assert capsys.readouterr().err == ""
    assert list(modeling_gguf_pytorch_utils.tqdm([1, 2], desc="converting")) == [1, 2]
    assert "converting" in capsys.readouterr().err
