"""The file that a command of LLaMA-Factory runs by, read before anything heavy is imported: mistakes end at once.

Only what must fail is refused here; the host, and this package's checks of a `moe` run, see the file again.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from neuronmoe_plugins.errors import UserError, one_line
from neuronmoe_plugins.models import HUB_NAME, require_model

PROGRAMS = ("llamafactory-cli", "lmf")
COMMANDS = ("train", "chat", "api", "webchat", "export", "sft", "dpo", "rm")
ENDINGS = (".yaml", ".yml", ".json")
METHOD = re.compile(r"""\bfinetuning_type["']?\s*[:=]\s*["']?moe\b""")
METHOD_OF_V1 = re.compile(r"""\bname["']?\s*[:=]\s*["']?moe\b""")
# Data that is on no disk here, or a value that stands for another.
ELSEWHERE = re.compile(r"ONLINE$|REMOTE:|.*\$")


def extend_command(_module: ModuleType) -> None:
    """Post-import hook of `llamafactory.cli`, which the command imports before torch, and so before this package."""
    if Path(sys.argv[0]).stem not in PROGRAMS:
        return
    try:
        check_file(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"llamafactory-cli: error: {one_line(error)}\n")
        raise SystemExit(2) from None


def check_file(words: list[str]) -> None:
    """Refuse a file that is not there and, of a `moe` run, one that cannot be read, or that names a path in vain.

    Args:
        words: The command line, without the program.

    Raises:
        UserError: naming the file, or the key and the path.
    """
    command, name = [*words, "", ""][:2]
    if command not in COMMANDS or not name.endswith(ENDINGS):
        return
    if not Path(name).exists():
        raise UserError(f"{name}: there is no such file")
    if not Path(name).is_file():
        return
    text = Path(name).read_text(encoding="utf-8", errors="replace")
    if not any(METHOD.search(part) or METHOD_OF_V1.search(part) for part in (text, *words[2:])):
        return
    given = _read(name, words[2:])
    of_v1 = given.get("peft_config")
    if isinstance(of_v1, dict) and of_v1.get("name") == "moe":
        if command in ("dpo", "rm"):
            raise UserError(f"peft_config: {command} of v1 would train moe without the mixture's losses: use sft")
        given = {"model": given.get("model"), "adapter_name_or_path": of_v1.get("adapter_name_or_path")}
    elif given.get("finetuning_type") != "moe":
        return
    _check_paths(given, trains=command == "train")


def what_is_wrong(error: Exception) -> str:
    """The problem and its line, without the excerpt of the file that an error of YAML has."""
    if isinstance(error, TypeError):
        return "it must map keys to values"
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return one_line(error)
    file, number = Path(error.problem_mark.name), error.problem_mark.line
    if not file.is_file():
        return f"after it, {error.problem}"
    line = [*file.read_text(encoding="utf-8", errors="replace").split("\n"), ""][number]
    hint = "; YAML is indented by blanks, not by tabs" if "\t" in line else ""
    return f"line {number + 1}: {error.problem}{hint}"


def _read(name: str, more: list[str]) -> dict[str, Any]:
    """The file's keys, and those that the command line gives other values."""
    try:
        with Path(name).open(encoding="utf-8", errors="replace") as file:
            given = yaml.safe_load(file)
        if not isinstance(given, dict):
            raise TypeError
    except (yaml.YAMLError, TypeError) as error:
        raise UserError(f"{name} cannot be read: {what_is_wrong(error)}") from error
    pairs = (word.partition("=") for word in more)
    return {str(key): value for key, value in given.items()} | {key: value for key, _, value in pairs}


def _check_paths(given: dict[str, Any], trains: bool) -> None:
    for key in ("model_name_or_path", "model", "adapter_name_or_path"):
        path: Any = given.get(key)
        # A name of the hub is looked for by who loads it; a list, or what stands for another value, is refused later.
        is_path = isinstance(path, str) and not re.search(r"[,$]", path) and not HUB_NAME.fullmatch(path)
        if is_path and not Path(path).exists():
            require_model(f"{key}:", path)
    folder = given.get("dataset_dir")
    if trains and isinstance(folder, str) and not ELSEWHERE.match(folder) and not given.get("tokenized_path"):
        file = Path(folder) / "dataset_info.json"
        if not file.exists():
            raise UserError(f"{file} does not exist; dataset_dir must be the folder that has it")
