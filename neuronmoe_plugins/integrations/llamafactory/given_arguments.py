"""What the user wrote, before the host reads it: keys that nobody knows, and values that cannot be what is meant.

Only what concerns `moe` is refused here. The host refuses the rest in its own words.
"""

from __future__ import annotations

import sys
import types
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from llamafactory.extras.misc import is_env_enabled
from llamafactory.hparams.training_args import TrainingArguments
from transformers import HfArgumentParser

from neuronmoe_plugins.errors import UserError, did_you_mean, nearest
from neuronmoe_plugins.integrations.llamafactory.arguments import MoeDataArguments, MoeFinetuningArguments, added_fields
from neuronmoe_plugins.integrations.run_files import METHOD, what_is_wrong
from neuronmoe_plugins.integrations.stand_ins import Call
from neuronmoe_plugins.tuner.reference_format import WITHOUT_EFFECT

Given = dict[str, Any]
# Arguments of the published code, or of those that it is based on, whose value nothing there reads.
PUBLISHED_WITHOUT_EFFECT = WITHOUT_EFFECT.keys() | {"different_old_experts", "per_language_experts_num"}
# How like an argument of `moe` a wrong key must be to be taken for it with another method.
SURELY_MEANT = 0.85


def read_given(given: Given | list[str], classes: list[Any]) -> Given:
    """The arguments that the user gave, of a YAML or a command line.

    Args:
        given: What the host's `read_args` returns.
        classes: The dataclasses that the command's arguments are parsed into.

    Returns:
        Argument -> value; those of a command line as their type says if the run is a `moe` one, else as words.

    Raises:
        UserError: naming each unknown key of a `moe` run, or the value that its argument cannot have; with another
            method, for a misspelt argument of `moe` or method.
    """
    written = {str(key): value for key, value in given.items()} if isinstance(given, dict) else _words(given)
    if not isinstance(given, dict) and not {"-h", "--help"}.isdisjoint(given):
        return {}
    hints = {c: get_type_hints(c) for c in classes}
    types_ = {f.name: hints[c][f.name] for c in classes for f in fields(c) if f.init}
    method, choices = written.get("finetuning_type"), get_args(types_["finetuning_type"])
    if isinstance(method, str) and method not in choices and nearest(method, choices) == "moe":
        raise UserError(f"finetuning_type must be one of {', '.join(choices)}; got {method!r}: did you mean moe?")
    unknown = _unknown_keys(written, types_, abbreviated=not isinstance(given, dict))
    if unknown and not is_env_enabled("ALLOW_EXTRA_ARGS"):
        _refuse_keys(unknown, written, list(types_))
    if not is_moe(written):
        return written
    if isinstance(given, dict):
        _check_values(written, types_)
        return written
    return _parsed(given, written, classes)


def is_moe(given: Given | list[str]) -> bool:
    """Whether the arguments are those of a `moe` run."""
    written = given if isinstance(given, dict) else _words(given)
    return written.get("finetuning_type") == "moe"


def _words(given: list[str]) -> Given:
    """`--key value`, `--key=value` and `--key` of a command line."""
    written: Given = {}
    for word, following in zip(given, [*given[1:], ""], strict=True):
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            written[key.replace("-", "_")] = value if equals else following
    return written


def _unknown_keys(written: Given, known: dict[str, Any], abbreviated: bool) -> list[str]:
    """Keys that no argument has; a command line may shorten arguments, and negate them by `no_`."""
    if not abbreviated:
        return [key for key in written if key not in known]
    options = [*known, *(f"no_{name}" for name in known)]
    return [key for key in written if not any(option.startswith(key) for option in options)]


def _refuse_keys(unknown: list[str], written: Given, known: list[str]) -> None:
    """Raise if the unknown keys are a `moe` run's, or meant to be."""
    ours = {f.name for c in (MoeFinetuningArguments, MoeDataArguments) for f in added_fields(c)}
    # Not in capitals: `topK` may be the host's `top_k`.
    similar = [key for key in unknown if key.islower() and nearest(key, known, SURELY_MEANT) in ours]
    meant = [key for key in unknown if key in similar or written[key] == "moe"]
    if is_moe(written) or meant:
        keys = unknown if is_moe(written) else meant
        raise UserError("; ".join(f"unknown key {key}{_remedy(key, written[key], known)}" for key in keys))


def _remedy(key: str, value: Any, known: list[str]) -> str:
    if key in PUBLISHED_WITHOUT_EFFECT:
        return ": the published code never used it, remove it"
    if value == "moe":
        return ": did you mean finetuning_type?"
    if key in {f.name for f in fields(TrainingArguments)}:
        return ": it is for training alone, remove it"
    return did_you_mean(key, known) or ": no argument is like it, remove it"


def _check_values(written: Given, types_: dict[str, Any]) -> None:
    problems = [
        f"{key} must be {wanted}; got {value!r}{hint}"
        for key, value in written.items()
        if value is not None and key in types_ and (problem := _problem(value, types_[key]))
        for wanted, hint in [problem]
    ]
    if problems:
        raise UserError("; ".join(problems))


def _problem(value: Any, hint: Any) -> tuple[str, str] | None:
    """What the value should be, and what it may have been meant to be; None where it may be right."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    choices = _choices(kinds)
    if choices:
        is_right = value in choices
        return None if is_right else (f"one of {', '.join(map(str, choices))}", did_you_mean(value, map(str, choices)))
    for kind, wanted in ((bool, "true or false"), (int, "an integer"), (float, "a number")):
        if kind in kinds and not {str, dict, list} & set(kinds):
            return None if _may_be(value, kind) else (wanted, "")
    return None


def _choices(kinds: tuple[Any, ...]) -> list[Any]:
    """The values that a type of a few names has."""
    if str in kinds:
        return []
    named = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)]
    literal = [kind for kind in kinds if get_origin(kind) is Literal]
    return [member.value for kind in named for member in kind] + [c for kind in literal for c in get_args(kind)]


def _may_be(value: Any, kind: type) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if kind is int:
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, int | float)


class _Parser(HfArgumentParser):
    """The host's parser, which says what is wrong without the hundreds of lines of its usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _parsed(given: list[str], written: Given, classes: list[Any]) -> Given:
    """The values of a command line."""
    namespace, rest = _Parser(classes).parse_known_args(given)
    if rest and not is_env_enabled("ALLOW_EXTRA_ARGS"):
        raise UserError(f"unknown arguments {' '.join(rest)}")
    values = vars(namespace)
    # Options may be shortened, and negated.
    whole = {key: next((name for name in values if name.startswith(key)), key.removeprefix("no_")) for key in written}
    names = (key if key in values else whole[key] for key in written)
    return {name: values[name] for name in names if name in values}


def read_args(call: Call) -> Any:
    """Stand in for `read_args(args)`, which reads the file that the command line names unless it is given arguments.

    Raises:
        UserError: if there is no such file, or one that asks for `moe` cannot be read.
    """
    try:
        return call.host()
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: there is no such file") from error
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        text = Path(sys.argv[1]).read_text(encoding="utf-8", errors="replace")
        if not any(METHOD.search(part) for part in (text, *sys.argv[1:])):
            raise
        raise UserError(f"{sys.argv[1]} cannot be read: {what_is_wrong(error)}") from error
