"""Measure a model of the demo: bits per byte through lm-eval, and where its routers send each language."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from neuronmoe_plugins.demo.bits_per_byte import write_tasks
from neuronmoe_plugins.demo.commands import run_command
from neuronmoe_plugins.files import new_directory, write_json
from neuronmoe_plugins.neurons.loading import default_device
from neuronmoe_plugins.tuner import MoeModel


def measure_bits_per_byte(
    model: Path, adapter: Path | None, texts: Mapping[str, Path], max_length: int, output: Path, log: Path
) -> None:
    """Run lm-eval on local texts.

    Args:
        model: Directory of the base model.
        adapter: Directory of an adapter; the base model is measured without one.
        texts: Name -> JSON lines file of documents.
        max_length: Tokens that the model sees at once.
        output: Folder to create: lm-eval's tasks, its results file, and `bits_per_byte.json` (name -> value).
        log: Receives lm-eval's output.

    Raises:
        UserError: if lm-eval fails.
    """
    # Without a softmax in float32, log-probabilities would be rounded to bfloat16's 8 bits.
    model_args = f"pretrained={model},dtype=bfloat16,softmax_dtype=float32,max_length={max_length}"
    if adapter:
        model_args += f",peft={adapter}"
    with new_directory(output) as directory:
        tasks = write_tasks(directory / "tasks", dict(texts))
        run_command(
            [
                *("lm_eval", "run", "--model", "hf", "--model_args", model_args, "--batch_size", "1"),
                *("--include_path", directory / "tasks", "--tasks", ",".join(tasks)),
                *("--device", default_device(), "--output_path", directory),
            ],
            log=log,
        )
        results_file = next(directory.rglob("results_*.json"))
        results = json.loads(results_file.read_text(encoding="utf-8"))["results"]
        values = {name: results[task]["bits_per_byte,none"] for name, task in zip(texts, tasks, strict=True)}
        write_json(directory / "bits_per_byte.json", values)


def measure_expert0_share(
    model: Path, adapter: Path, texts: Mapping[str, Path], max_length: int, max_tokens: int
) -> dict[str, dict[int, float]]:
    """Measure, for each text, which share of its tokens each router gives to expert 0, the base model's MLP.

    Args:
        model: Directory of the base model.
        adapter: Directory of a `moe` adapter.
        texts: Name -> JSON lines file of documents.
        max_length: Tokens of a document that are read.
        max_tokens: Documents are read until a text has given so many tokens.

    Returns:
        Name -> layer index -> share of the tokens whose most probable expert is expert 0, in 0..1.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, device_map=default_device())
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
        ids = tokenizer(
            json.loads(line)["text"],
            truncation=True,
            max_length=min(max_length, max_tokens - total),
            return_tensors="pt",
        )["input_ids"]
        blocks.append(ids)
        total += ids.shape[1]
    return blocks
