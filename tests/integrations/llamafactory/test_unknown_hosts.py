"""Versions of LLaMA-Factory that call a function otherwise: silence for other methods, and one line for `moe`."""

from __future__ import annotations

import importlib
import logging
import re
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import wrapt
from training_runs import refusal, train

from neuronmoe_plugins import autoload
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.integrations.llamafactory.hooks import PARSER, REPAIRS, STAND_INS
from neuronmoe_plugins.integrations.stand_ins import function_of

LISTS = ("_TRAIN_ARGS", "_INFER_ARGS", "_EVAL_ARGS")
# Those of the parser that refuse `moe` instead.
REFUSING = ["get_train_args(args)", "get_infer_args(args)"]
NEEDED = [
    (module, signature)
    for module, stand_ins in STAND_INS.items()
    for signature in stand_ins
    if function_of(signature).rpartition(".")[2] not in REPAIRS
]
Misname = Callable[[Iterable[tuple[str, str]]], list[str]]


def host_of(name: str) -> ModuleType:
    return importlib.import_module(name)


def parts(module: ModuleType) -> dict[str, list[int]]:
    """Which objects what a hook extends in a module of the host is; a wrapped function equals the one inside."""
    functions = [one for name, one in NEEDED if name == module.__name__]
    found = {one: [id(wrapt.resolve_path(module, function_of(one))[2])] for one in functions}
    return found | {name: [id(one) for one in getattr(module, name, [])] for name in LISTS}


@pytest.fixture
def misname(monkeypatch: pytest.MonkeyPatch) -> Misname:
    """Puts modules of the host back as they are without this package, and lets their hooks look for other names.

    Returns what of them the hooks have extended nevertheless.
    """
    host_of("llamafactory.train.tuner")

    def rename(gone: Iterable[tuple[str, str]]) -> list[str]:
        extended = []
        for name, signature in gone:
            module = host_of(name)
            _unhook(module, monkeypatch)
            stand_ins = {f"not_{key}" if key == signature else key: target for key, target in STAND_INS[name].items()}
            monkeypatch.setitem(STAND_INS, name, stand_ins)
            monkeypatch.setitem(autoload.outcomes, name, None)
            before = parts(module)
            autoload._guarded(name, autoload.HOOKS[name])(module)
            extended += [part for part, objects in parts(module).items() if objects != before[part]]
        # It has the parser's function under a name of its own.
        monkeypatch.setattr(host_of("llamafactory.train.tuner"), "get_train_args", host_of(PARSER).get_train_args)
        return extended

    return rename


def _unhook(module: ModuleType, patch: pytest.MonkeyPatch) -> None:
    for signature in STAND_INS[module.__name__]:
        parent, attribute, wrapper = wrapt.resolve_path(module, function_of(signature))
        if isinstance(wrapper, wrapt.FunctionWrapper):
            patch.setattr(parent, attribute, wrapper.__wrapped__)
    if module.__name__ == PARSER:
        for name in LISTS:
            classes = [one.__mro__[1] if one.__name__.startswith("Moe") else one for one in getattr(module, name)]
            patch.setattr(module, name, classes)
        patch.setattr(module.FinetuningArguments, "__post_init__", module.FinetuningArguments.__post_init__)


def of_lora(moe_args: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in moe_args.items() if key != "ada_moe_num_experts_list"} | {
        "finetuning_type": "lora",
        "lora_rank": 2,
    }


@pytest.mark.parametrize(("name", "signature"), NEEDED)
def test_without_a_function_nothing_is_extended_and_moe_is_refused(
    moe_args: dict[str, Any], misname: Misname, caplog: pytest.LogCaptureFixture, name: str, signature: str
) -> None:
    from llamafactory.train import tuner

    extended = misname([(name, signature)])
    assert extended == (REFUSING if name == PARSER else [])
    line = refusal(moe_args)
    assert line.startswith(
        f"moe cannot run with llamafactory {version('llamafactory')}: neuronmoe-plugins cannot extend {name} "
    )
    assert line.endswith("; run `neuronmoe doctor`") and f"not_{function_of(signature).partition('.')[0]}" in line
    assert tuner.get_train_args(of_lora(moe_args))[3].finetuning_type == "lora"
    assert not [record for record in caplog.records if record.name.startswith("neuronmoe_plugins")]


@pytest.mark.parametrize("gone", ["parser", "others", "all"])
def test_lora_trains_as_with_every_hook(
    moe_args: dict[str, Any],
    misname: Misname,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    gone: str,
) -> None:
    lora = of_lora(moe_args) | {"max_steps": 2}
    expected = train(lora, tmp_path / "hooked")
    names = [name for name in STAND_INS if gone == "all" or (name == PARSER) == (gone == "parser")]
    misname((name, next(iter(STAND_INS[name]))) for name in names)
    losses = train(lora, tmp_path / "unhooked")
    assert [step["loss"] for step in losses] == [step["loss"] for step in expected]
    files = [{path.name for path in (tmp_path / folder).iterdir()} for folder in ("hooked", "unhooked")]
    assert files[0] == files[1]
    assert not [record for record in caplog.records if record.name.startswith("neuronmoe_plugins")]


@pytest.mark.parametrize("given", [{"finetuning_type": "moe"}, ["--finetuning_type", "moe"], ["--finetuning_type=moe"]])
def test_a_parser_that_cannot_be_taught_refuses_moe_alone(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    host = ModuleType(PARSER)  # of another version, without the functions that the hook looks for
    host.get_train_args = host.get_infer_args = lambda args=None: args  # type: ignore[attr-defined]
    monkeypatch.setitem(autoload.outcomes, PARSER, None)
    autoload._guarded(PARSER, autoload.HOOKS[PARSER])(host)
    assert isinstance(autoload.outcomes[PARSER], AttributeError)
    for parse in (host.get_train_args, host.get_infer_args):
        with pytest.raises(UserError, match=rf"^moe cannot run with llamafactory \S+: .* extend {PARSER} \(AttributeE"):
            parse(given)
        for other in ({"finetuning_type": "lora", "output_dir": "moe"}, ["--finetuning_type", "lora"]):
            assert parse(other) == other


def test_a_function_that_takes_other_arguments_is_not_stood_in_for(
    moe_args: dict[str, Any], misname: Misname, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "llamafactory.model.loader"
    stand_ins = {"init_adapter(base_model)": "adapter:init_adapter"}
    monkeypatch.setitem(STAND_INS, name, stand_ins)
    misname([(name, "")])
    assert f"AttributeError: {name}.init_adapter has no parameter 'base_model'" in refusal(moe_args)


def test_a_module_that_has_gone_is_missed(moe_args: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    name = "llamafactory.train.pt.trainer"
    host_of("llamafactory.train.tuner")
    monkeypatch.setitem(sys.modules, name, None)
    assert re.search(f"cannot extend {name} .ModuleNotFoundError: ", refusal(moe_args))


@pytest.mark.parametrize("switch", ["USE_MCA", "USE_MEGATRON_BRIDGE"])
def test_other_training_loops_are_refused(
    moe_args: dict[str, Any], monkeypatch: pytest.MonkeyPatch, switch: str
) -> None:
    monkeypatch.setenv(switch, "1")
    assert refusal(moe_args) == f"finetuning_type: moe does not work with {switch}: it has a training loop of its own"


def test_nothing_is_logged_but_for_who_looks(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(autoload.outcomes, "json", None)
    with caplog.at_level(logging.DEBUG, "neuronmoe_plugins"):
        autoload._guarded("json", "neuronmoe_plugins.no_such_module:extend")(host_of("json"))
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
