"""lm-eval on a user's own texts and tasks, by its command: bits per byte of a text, as tasks of this package's making.

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
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import write_text
from neuronmoe_plugins.steps import Start, run_command, start_process

_KEY = re.compile(r"[A-Za-z0-9_-]+")


def run_lm_eval(
    model_args: Mapping[str, object],
    tasks: Sequence[str],
    include: Path,
    output: Path,
    log: Path,
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    start: Start = start_process,
) -> None:
    """Evaluate a model of transformers.

    Args:
        model_args: What `--model_args` has, by key.
        tasks: Names of tasks.
        include: Folder of tasks that lm-eval does not have.
        output: Folder for its results file.
        log: Receives its output.
        options: More of its command line, `--device` and `--batch_size` among them.
        env: Variables set on top of this process's environment.
        start: How it is started.

    Raises:
        UserError: if lm-eval fails.
    """
    arguments = ",".join(f"{key}={value}" for key, value in model_args.items())
    run_command(
        [
            *("lm_eval", "run", "--model", "hf", "--model_args", arguments, *options),
            *("--include_path", include, "--tasks", ",".join(tasks), "--output_path", output),
        ],
        log,
        env=env,
        start=start,
    )


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
        check_documents(key, path)
    for key, path in texts.items():
        task = {
            "task": task_name(key),
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(path.resolve())}},
            "test_split": "test",
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "text",
            "metric_list": [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
            "metadata": {"version": 1.0},
        }
        write_text(directory / f"{task_name(key)}.yaml", yaml.safe_dump(task, sort_keys=False, allow_unicode=True))
    return list(map(task_name, texts))


def task_name(key: str) -> str:
    """The task that measures a text."""
    return f"bits_per_byte_{key}"


def check_documents(key: str, path: Path) -> None:
    """Raise `UserError` for a key or a file that `write_tasks` refuses."""
    if not _KEY.fullmatch(key):
        raise UserError(f"text key {key!r} cannot be part of a task name; use letters, digits, - and _")
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
