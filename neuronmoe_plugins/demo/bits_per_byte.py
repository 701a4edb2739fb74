"""lm-eval tasks that measure bits per byte on local text.

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
from pathlib import Path

import yaml

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import write_text

_KEY = re.compile(r"[A-Za-z0-9_-]+")


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
        task = yaml.safe_dump(_task(key, path), sort_keys=False, allow_unicode=True)
        write_text(directory / f"bits_per_byte_{key}.yaml", task)
    return [f"bits_per_byte_{key}" for key in texts]


def _task(key: str, path: Path) -> dict[str, object]:
    return {
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
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and isinstance(record.get("text"), str)
