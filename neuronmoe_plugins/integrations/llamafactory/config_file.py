"""A command's configuration file: when it cannot be read, one line says so."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from neuronmoe_plugins.errors import UserError, one_line

METHOD = re.compile(r"""\bfinetuning_type["']?\s*[:=]\s*["']?moe\b""")


def read_args(wrapped: Callable[..., Any], instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Stand in for `read_args(args)`, which reads the file that the command line names unless it is given arguments.

    Raises:
        UserError: if there is no such file, or one that asks for `moe` cannot be read.
    """
    try:
        return wrapped(*args, **kwargs)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: there is no such file") from error
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        if not _asks_for_moe(sys.argv[1:]):
            raise
        raise UserError(f"{sys.argv[1]} cannot be read: {_what(error)}") from error


def _asks_for_moe(words: list[str]) -> bool:
    text = Path(words[0]).read_text(encoding="utf-8", errors="replace")
    return any(METHOD.search(part) for part in (text, *words))


def _what(error: Exception) -> str:
    """The problem and its line, without the excerpt of the file that a YAML error has."""
    if isinstance(error, TypeError):
        return "it must map keys to values"
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return one_line(error)
    if not Path(error.problem_mark.name).is_file():
        return f"after it, {error.problem}"
    return f"line {error.problem_mark.line + 1}: {error.problem}"
