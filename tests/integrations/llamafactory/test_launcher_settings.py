"""Settings of launchers under which no adapter would come out: an error before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from neuronmoe_plugins.errors import UserError

ACCELERATE = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}


def parse(args: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    from llamafactory.hparams import get_train_args

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    get_train_args(args)


def test_fsdp_that_saves_whole_adapters(moe_args: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    parse(moe_args, monkeypatch, **ACCELERATE)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"FSDP_VERSION": "1"}, "fsdp_version: 1 .*set fsdp_version: 2"),
        ({"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, "SHARDED_STATE_DICT saves no adapter .*: FULL_STATE_DICT"),
    ],
)
def test_fsdp_of_another_kind(
    moe_args: dict[str, Any], monkeypatch: pytest.MonkeyPatch, setting: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        parse(moe_args, monkeypatch, **ACCELERATE | setting)
    parse(moe_args | {"finetuning_type": "lora", "ada_moe_num_experts_list": None}, monkeypatch)
