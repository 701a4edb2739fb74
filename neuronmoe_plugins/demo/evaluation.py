"""Measure a model of the demo: bits per byte through lm-eval, and where its routers send each language.

lm-eval adds up, over all documents of a file, -log2 P(document) and divides by their UTF-8 bytes. Two of its habits
matter to the number (lm-eval 0.4.13, `--model hf`):

- Every document's first token is predicted from a prefix token: the tokenizer's BOS, or its EOS if it has no BOS
  (`prefix_token_id=` in `--model_args` overrides it). A tokenizer that adds BOS by itself, as Llama's does, makes
  lm-eval also *score* that BOS, a cost that belongs to no byte: pass `add_bos_token=False` for these tasks.
- A document longer than `max_length=` tokens (default: the model's `max_position_embeddings`) is cut into consecutive
  windows of `max_length` predicted tokens. A full window reads only one token before it, the last one as many as fill
  `max_length`. So compare models at the same `max_length`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from neuronmoe_plugins.demo.steps import run_command
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import new_directory, read_json, write_json, write_text
from neuronmoe_plugins.neurons.loading import default_device
from neuronmoe_plugins.tuner import MoeModel

_KEY = re.compile(r"[A-Za-z0-9_-]+")


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
    model_args = f"pretrained={model},dtype={dtype},softmax_dtype=float32,max_length={max_length}"
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
        results = read_json(results_file)["results"]
        values = {name: results[task]["bits_per_byte,none"] for name, task in zip(texts, tasks, strict=True)}
        write_json(directory / "bits_per_byte.json", values)


def write_tasks(directory: Path, texts: dict[str, Path]) -> list[str]:
    """Write one lm-eval task per text file, for `lm_eval --include_path directory`.

    Args:
        directory: where the YAML files go; made if missing.
        texts: key to a `.jsonl` file with the string field `text`, one document a line.

    Returns:
        The task names `bits_per_byte_{key}`, in the order of `texts`.

    Raises:
        UserError: for a key that cannot be a task name, and for a file that is missing, empty or has a line without
            `text`. Nothing is written then.
    """
    for key, path in texts.items():
        if not _KEY.fullmatch(key):
            raise UserError(f"text key {key!r} cannot be part of a task name; use letters, digits, - and _")
        _check_documents(path)
    for key, path in texts.items():
        task = {
            "task": f"bits_per_byte_{key}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(path.resolve())}},
            "test_split": "test",
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "text",
            "metric_list": [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
            "metadata": {"version": 1.0},
        }
        write_text(directory / f"bits_per_byte_{key}.yaml", yaml.safe_dump(task, sort_keys=False, allow_unicode=True))
    return [f"bits_per_byte_{key}" for key in texts]


def _check_documents(path: Path) -> None:
    # lm-eval would take a missing field's name for the document, and so score the word "text".
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines() would also split inside a text
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from error
    if not any(lines):
        raise UserError(f"{path} is empty; it needs one JSON object with a field 'text' per line")
    for number, line in enumerate(lines, start=1):
        if line and not _has_text(line):
            raise UserError(f"{path}:{number}: not a JSON object with a string field 'text'")


def _has_text(line: str) -> bool:
    try:
        return isinstance(json.loads(line)["text"], str)
    except (ValueError, TypeError, KeyError):
        return False


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
