"""Measure a model of the demo: bits per byte through lm-eval, and where its routers send each language."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from neuronmoe_plugins.evaluation import run_lm_eval, write_tasks
from neuronmoe_plugins.files import new_directory, read_json, write_json
from neuronmoe_plugins.neurons.loading import default_device
from neuronmoe_plugins.progress import without_transformers_bars
from neuronmoe_plugins.tuner import MoeModel


def measure_bits_per_byte(
    model: Path,
    adapter: Path | None,
    texts: Mapping[str, Path],
    max_length: int,
    output: Path,
    log: Path,
    dtype: str = "bfloat16",
) -> None:
    """Run lm-eval on local texts.

    Args:
        model: Directory of the base model.
        adapter: Directory of an adapter; the base model is measured without one.
        texts: Name -> JSON lines file of documents.
        max_length: Tokens that the model sees at once.
        output: Folder to create: lm-eval's tasks, its results file, and `bits_per_byte.json` (name -> value).
        log: Receives lm-eval's output.
        dtype: In which the model computes.

    Raises:
        UserError: if lm-eval fails.
    """
    # Without a softmax in float32, bfloat16's log-probabilities would be rounded to bfloat16's 8 bits.
    model_args: dict[str, object] = {
        "pretrained": model,
        "dtype": dtype,
        "softmax_dtype": "float32",
        "max_length": max_length,
    }
    if adapter:
        model_args["peft"] = adapter
    with new_directory(output) as directory:
        tasks = write_tasks(directory / "tasks", dict(texts))
        options = ("--batch_size", "1", "--device", default_device())
        run_lm_eval(model_args, tasks, directory / "tasks", directory, log, options)
        results_file = next(directory.rglob("results_*.json"))
        results = read_json(results_file)["results"]
        values = {name: results[task]["bits_per_byte,none"] for name, task in zip(texts, tasks, strict=True)}
        write_json(directory / "bits_per_byte.json", values)


def measure_expert0_share(
    model: Path, adapter: Path, texts: Mapping[str, Path], max_length: int, max_tokens: int, dtype: str
) -> dict[str, dict[int, float]]:
    """Measure, for each text, which share of its tokens each router gives to expert 0, the base model's MLP.

    Args:
        model: Directory of the base model.
        adapter: Directory of a `moe` adapter.
        texts: Name -> JSON lines file of documents.
        max_length: Tokens of a document that are read.
        max_tokens: Documents are read until a text has given so many tokens.
        dtype: In which the model computes.

    Returns:
        Name -> layer index -> share of the tokens whose most probable expert is expert 0, in 0..1.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    with without_transformers_bars():
        base = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), device_map=default_device())
    mixture = PeftModel.from_pretrained(base, str(adapter)).eval()
    tuner = cast(MoeModel, mixture.base_model)
    shares = {}
    for name, path in texts.items():
        blocks = _token_blocks(path, tokenizer, max_length, max_tokens)
        with torch.inference_mode(), tuner.routing_shares() as routing:
            for block in blocks:
                mixture(input_ids=block.to(base.device), logits_to_keep=1)
        shares[name] = {layer: share[0].item() for layer, share in sorted(routing.items())}
    return shares


def _token_blocks(
    path: Path, tokenizer: PreTrainedTokenizerBase, max_length: int, max_tokens: int
) -> list[torch.Tensor]:
    """The first tokens of a text's documents, each (1, up to max_length) int64."""
    blocks: list[torch.Tensor] = []
    total = 0
    for line in path.read_text(encoding="utf-8").split("\n"):
        if not line or total >= max_tokens:
            break
        text, room = json.loads(line)["text"], min(max_length, max_tokens - total)
        blocks.append(tokenizer(text, truncation=True, max_length=room, return_tensors="pt")["input_ids"])
        total += blocks[-1].shape[1]
    return blocks
