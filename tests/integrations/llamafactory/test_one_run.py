"""A run reads its files once, ends without a hook that it needs, and takes no argument that nobody has tried."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import make_dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from training_runs import refusal, train

from neuronmoe_plugins import autoload

READ_ONCE = ("adapter_config.json", "dataset_info.json")
INTEGRATIONS = f"{os.sep}neuronmoe_plugins{os.sep}integrations{os.sep}"
STAGE2 = {"train_only_router": True, "lpr_loss_coef": 0.1, "generate_lang_mask": True, "dataset": "en_even,el_even"}

opened: list[str] | None = None


def is_ours(frame: FrameType | None) -> bool:
    """Whether this package reads: a stand-in that asks the host for its own answer only passes its reads on."""
    while frame is not None:
        if INTEGRATIONS in frame.f_code.co_filename:
            return Path(frame.f_code.co_filename).name != "stand_ins.py"
        frame = frame.f_back
    return False


def watch(event: str, details: tuple[Any, ...]) -> None:
    # `os.open`, which has no mode, is how files are brought to the disk.
    if opened is None or event != "open" or not isinstance(details[0], str) or "r" not in (details[1] or ""):
        return
    name = Path(details[0]).name
    if name in READ_ONCE and is_ours(sys._getframe()):
        opened.append(name)


@pytest.fixture
def reads() -> Any:
    """How often this package opens each of the files to read it."""
    global opened
    if opened is None:
        sys.addaudithook(watch)
    opened = []
    yield lambda: dict(Counter(opened))
    opened = []


def test_a_run_reads_each_file_once(moe_args: dict[str, Any], tmp_path: Path, reads: Any) -> None:
    train(moe_args, tmp_path / "stage1", max_steps=1)
    assert reads() == {"dataset_info.json": 1}
    stage2 = {key: value for key, value in moe_args.items() if key != "ada_moe_num_experts_list"} | STAGE2
    train(stage2, tmp_path / "stage2", adapter_name_or_path=str(tmp_path / "stage1"), max_steps=1)
    assert reads() == {"dataset_info.json": 2, "adapter_config.json": 1}


@pytest.mark.parametrize("name", ["transformers.trainer", "peft.utils.save_and_load", "llamafactory.data.loader"])
def test_a_run_ends_without_a_hook_that_it_needs(
    moe_args: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from llamafactory.hparams import get_train_args

    host = name.partition(".")[0]
    monkeypatch.setitem(autoload.outcomes, name, AttributeError("gone"))
    assert refusal(moe_args) == (
        f"moe cannot run with {host} {version(host)}: neuronmoe-plugins cannot extend {name} (AttributeError: gone); "
        "run `neuronmoe doctor`"
    )
    lora = {key: value for key, value in moe_args.items() if key != "ada_moe_num_experts_list"}
    assert get_train_args(lora | {"finetuning_type": "lora"})[3].finetuning_type == "lora"


def test_a_run_goes_on_without_a_hook_that_others_need(
    moe_args: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafactory.hparams import get_train_args

    rows = "peft.tuners.trainable_tokens.layer"
    for name in (rows, "llamafactory.extras.constants", "liger_kernel.transformers.swiglu", "lm_eval.api.task"):
        monkeypatch.setitem(autoload.outcomes, name, AttributeError("gone"))
    assert get_train_args(moe_args)[3].finetuning_type == "moe"
    assert "cannot extend liger_kernel" in refusal(moe_args | {"enable_liger_kernel": True})


def test_an_argument_that_nobody_has_tried_is_refused(
    moe_args: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import llamafactory.hparams.parser as host

    classes = list(host._TRAIN_ARGS)
    classes[2] = make_dataclass("Later", [("later_one", int, 3), ("later_two", bool, False)], bases=(classes[2],))
    monkeypatch.setattr(host, "_TRAIN_ARGS", classes)
    assert refusal(moe_args | {"later_one": 4}) == (
        "not known to work with finetuning_type: moe: later_one; remove it, or let it through by moe_allow_arguments: "
        "later_one"
    )
    both = {"later_one": 4, "later_two": True}
    assert refusal(moe_args | both | {"moe_allow_arguments": "later_two"}).endswith(
        ": later_one; remove it, or let it through by moe_allow_arguments: later_two,later_one"
    )
    assert host.get_train_args(moe_args | {"later_one": 3, "later_two": False})[2].later_one == 3
    assert refusal(moe_args | {"moe_allow_arguments": "later_on"}) == (
        "moe_allow_arguments: the host has no argument later_on"
    )
    assert refusal(moe_args | {"moe_allow_arguments": ["use_mca"]}) == (
        "moe_allow_arguments: use_mca cannot be let through: it has models of its own"
    )
    warned: list[str] = []
    monkeypatch.setattr(host.logger, "warning_rank0", warned.append)
    allowed = host.get_train_args(moe_args | both | {"moe_allow_arguments": ["later_one", "later_two"]})
    assert (allowed[2].later_one, allowed[2].later_two) == (4, True)
    line = "moe_allow_arguments: not known to work with finetuning_type: moe: later_one, later_two"
    assert [one for one in warned if one.startswith("moe_allow")] == [line]
