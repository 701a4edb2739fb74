"""The YAML keys of `moe`, and every bad input that the parser can see."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from training_runs import refusal, save_adapter

STAGE2 = {"train_only_router": True, "lpr_loss_coef": 0.1, "generate_lang_mask": True, "dataset": "en_even,el_even"}


def parse(args: dict[str, Any]) -> tuple[Any, ...]:
    from llamafactory.hparams import get_train_args

    return get_train_args(args)


@pytest.fixture
def adapter_dir(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """An untrained adapter."""
    return Path(save_adapter(tmp_path / "stage1", tiny_model_dir, num_experts=[3, 1, 1, 2], topk=1, aux_loss_coef=0.01))


def test_a_list_or_a_string_of_experts(moe_args: dict[str, Any]) -> None:
    for value in ("3,1,1,2", [3, 1, 1, 2], "3, 1, 1, 2"):
        assert parse(moe_args | {"ada_moe_num_experts_list": value})[3].expert_list == [3, 1, 1, 2]


def test_settings_of_moe_training(moe_args: dict[str, Any]) -> None:
    model_args, _, training_args, finetuning_args, _ = parse(moe_args)
    assert finetuning_args.finetuning_type == "moe"
    assert model_args.use_reentrant_gc is False
    assert training_args.ddp_find_unused_parameters is False
    assert training_args.label_names == ["labels"]
    assert parse(moe_args | {"use_reentrant_gc": True})[0].use_reentrant_gc is True


def test_lora_arguments_stay_the_hosts(moe_args: dict[str, Any]) -> None:
    args = moe_args | {"finetuning_type": "lora"}
    del args["ada_moe_num_experts_list"]
    model_args, _, _, finetuning_args, _ = parse(args)
    assert finetuning_args.finetuning_type == "lora"
    assert model_args.use_reentrant_gc is True


def test_stage2_keeps_the_adapters_experts_and_takes_the_losses_of_the_yaml(
    moe_args: dict[str, Any], adapter_dir: Path
) -> None:
    from neuronmoe_plugins.integrations.llamafactory.adapter import load_or_make_config

    args = moe_args | STAGE2 | {"adapter_name_or_path": str(adapter_dir)}
    del args["ada_moe_num_experts_list"]
    model_args, _, _, finetuning_args, _ = parse(args)
    assert model_args.adapter_name_or_path == [str(adapter_dir)]
    config = load_or_make_config(model_args, finetuning_args, 4)
    assert (config.num_experts, config.topk, config.train_only_router) == ([3, 1, 1, 2], 1, True)
    assert (config.aux_loss_coef, config.lpr_loss_coef) == (None, 0.1)
    assert load_or_make_config(*parse(args | {"topk": 2})[0:4:3], 4).topk == 2


def test_the_way_to_run_experts_is_the_adapters_or_that_of_the_yaml(
    moe_args: dict[str, Any], tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuronmoe_plugins.integrations.llamafactory.adapter import load_or_make_config

    def config(**more: Any) -> Any:
        return load_or_make_config(*parse(args | more)[0:4:3], 4)

    args = dict(moe_args)
    assert config().experts_implementation == "auto"
    assert config(experts_implementation="loop").experts_implementation == "loop"
    options = {"num_experts": [3, 1, 1, 2], "experts_implementation": "sorted"}
    args["adapter_name_or_path"] = str(save_adapter(tmp_path / "own", tiny_model_dir, **options))
    assert config().experts_implementation == "sorted"
    assert config(experts_implementation="auto").experts_implementation == "auto"
    monkeypatch.setenv("NEURONMOE_EXPERTS_IMPLEMENTATION", "sort")
    assert "NEURONMOE_EXPERTS_IMPLEMENTATION must be one of" in refusal(moe_args)
    assert "one of auto, loop, sorted, grouped_mm; got 'sort'" in refusal(moe_args)


def test_a_program_may_import_the_integration_first() -> None:
    code = (
        "import neuronmoe_plugins.integrations.llamafactory.adapter as adapter\n"
        "from llamafactory.hparams.parser import _TRAIN_ARGS\n"
        "assert adapter.MoeFinetuningArguments in _TRAIN_ARGS, _TRAIN_ARGS\n"
    )
    result = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]


def test_help_has_the_new_keys() -> None:
    import llamafactory.hparams.parser as host
    from transformers import HfArgumentParser

    text = HfArgumentParser(host._TRAIN_ARGS).format_help()
    for key in ("ada_moe_num_experts_list", "lpr_loss_coef", "generate_lang_mask", "original_languages", "topk"):
        assert f"--{key}" in text


BAD_INPUT: dict[str, tuple[dict[str, Any], str]] = {
    "moe key with lora": (
        {"finetuning_type": "lora"},
        "ada_moe_num_experts_list: only valid with finetuning_type: moe",
    ),
    "mask with lora": (
        {"finetuning_type": "lora", "ada_moe_num_experts_list": None, "generate_lang_mask": True},
        "generate_lang_mask: only valid with finetuning_type: moe",
    ),
    "list of the wrong length": ({"ada_moe_num_experts_list": [3, 1]}, "2 entries, but 4 of the model's 4 layers"),
    "no integers": ({"ada_moe_num_experts_list": "3,many"}, "list of integers such as 6,2,1; got '3,many'"),
    "no experts": ({"ada_moe_num_experts_list": "1,1,1,1"}, "1 in every layer"),
    "two counts": ({"moe_num_experts": 2}, "moe_num_experts and ada_moe_num_experts_list"),
    "unknown layer": (
        {"ada_moe_num_experts_list": None, "moe_num_experts": 2, "layers_to_moe": "0,9"},
        r"layers \[9\], but the model has layers 0..3",
    ),
    "no such target": (
        {"moe_expert_rank": 4, "moe_targets": "heads"},
        "^moe_targets must be one of mlp, attention, both; got 'heads'",
    ),
    "copies of attention": (
        {"moe_targets": "both"},
        "^moe_targets is both: set moe_expert_rank, attention has no full copies",
    ),
    "negative coefficient": ({"aux_loss_coef": -1.0}, "aux_loss_coef must not be negative"),
    "preference stage": ({"stage": "dpo"}, "stage: pt or sft, not dpo"),
    "reentrant checkpointing": ({"aux_loss_coef": 0.01, "use_reentrant_gc": True}, "set use_reentrant_gc: false"),
    "routers of nothing": ({"train_only_router": True}, "set adapter_name_or_path to that of stage 1"),
    "no such adapter": ({"adapter_name_or_path": "nowhere"}, "adapter_name_or_path: nowhere does not exist"),
    "two adapters": ({"adapter_name_or_path": "a,b"}, "one adapter"),
    "lpr without mask": ({"lpr_loss_coef": 0.1}, "set generate_lang_mask: true"),
    "languages without mask": ({"original_languages": "en"}, "no effect without generate_lang_mask"),
    "no old data": (
        {"lpr_loss_coef": 0.1, "generate_lang_mask": True},
        "none of the data sets el_even is in an old language",
    ),
    "untagged data": (
        {"generate_lang_mask": True, "dataset": "en_even,untagged,el_even"},
        "dataset_info.json.*but untagged has none",
    ),
    "strange tag": ({"generate_lang_mask": True, "dataset": "strange"}, "strange: .*got 7"),
    "code alone": ({"generate_lang_mask": True, "dataset": "el_coded"}, 'el_coded: "language": "el" is neither'),
    "untagged evaluation data": (
        {"generate_lang_mask": True, "dataset": "en_even", "eval_dataset": "untagged"},
        "untagged has none",
    ),
}


@pytest.mark.parametrize(("overrides", "message"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_named(moe_args: dict[str, Any], overrides: dict[str, Any], message: str) -> None:
    assert re.search(message, refusal(moe_args | overrides))


def test_adapter_with_other_experts(moe_args: dict[str, Any], adapter_dir: Path) -> None:
    args = moe_args | {"adapter_name_or_path": str(adapter_dir), "ada_moe_num_experts_list": "2,2,2,2"}
    message = r"ada_moe_num_experts_list is \[2, 2, 2, 2\], but the adapter .* \[3, 1, 1, 2\]"
    assert re.search(message, refusal(args))


def test_adapter_of_another_method(moe_args: dict[str, Any], adapter_dir: Path) -> None:
    (adapter_dir / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    message = refusal(moe_args | {"adapter_name_or_path": str(adapter_dir)})
    assert re.search("holds a .*LORA adapter, not a MOE one", message)
