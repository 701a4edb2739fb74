"""Every argument of `moe` has an effect beside the others and in what the run does, or is an error."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from training_runs import refusal, save_adapter

from neuronmoe_plugins.errors import UserError

NO_EFFECT = "no effect without training: {}; remove, or set do_train: true$"
ALL_LAYERS = {"ada_moe_num_experts_list": None, "moe_num_experts": 3}
NEW_ADAPTER: dict[str, tuple[dict[str, Any], str]] = {
    "no expert": ({"ada_moe_num_experts_list": "3,0,1,2"}, r"a count of at least 1 .*; got \[3, 0, 1, 2\]"),
    "fewer than none": ({"ada_moe_num_experts_list": [3, -1, 1, 2]}, r"ada_moe_num_experts_list must have a count"),
    "empty list": ({"ada_moe_num_experts_list": []}, r"ada_moe_num_experts_list must have a count .*; got \[\]"),
    "no experts at all": (
        {"ada_moe_num_experts_list": None, "moe_num_experts": 0},
        "moe_num_experts must be .*; got 0",
    ),
    "dense": ({"ada_moe_num_experts_list": None, "moe_num_experts": 1}, "1 in every layer: there is no mixture"),
    "topk 0": ({"topk": 0}, "topk must be an integer of at least 1; got 0"),
    "topk of no layer": ({"topk": 4}, "topk is 4, but no layer has more than 3 experts"),
    "unknown implementation": (
        {"experts_implementation": "groupedmm"},
        "experts_implementation must be one of auto, loop, sorted, grouped_mm; got 'groupedmm'",
    ),
    "negative layer": ({"layers_to_moe": "-1"}, r"layers_to_moe must name layers from 0 on; got \[-1\]"),
    "layer twice": ({"layers_to_moe": "0,3,0"}, r"layers_to_moe names layers \[0\] more than once: \[0, 3, 0\]"),
    "layers that are left out": (
        {"layers_to_moe": "0,1"},
        r"gives experts to layers \[3\], which layers_to_moe \[0, 1\] leaves out",
    ),
    "negative groups": ({"group_nums": -1}, "group_nums must have a number of at least 0 for each layer; got -1"),
    "not a number": ({"aux_loss_coef": float("nan")}, "aux_loss_coef must be a finite number; got nan"),
    "infinite": ({"lpr_loss_coef": float("inf")}, "lpr_loss_coef must be a finite number; got inf"),
    "double softmax of nothing": ({"lpr_double_softmax": True}, "lpr_double_softmax has no effect without lpr_loss_c"),
    "double softmax of no loss": (
        {"lpr_double_softmax": True, "lpr_loss_coef": 0, "generate_lang_mask": True},
        "lpr_double_softmax has no effect without lpr_loss_coef",
    ),
    "balance of no loss": ({"aux_loss_per_sequence": True, "aux_loss_coef": 0}, "aux_loss_per_sequence has no effect"),
    "groups of no loss": (
        {"sequential_add_mask": True, "sequential_add_loss_coef": 0.0},
        "sequential_add_mask has no effect without",
    ),
    "evaluation without an adapter": (
        {"do_train": False, "do_eval": True, "val_size": 0.1},
        "set adapter_name_or_path",
    ),
}
EVALUATION = {"do_train": False, "do_eval": True, "dataset": None, "eval_dataset": "el_even"}
EVALUATION |= {"ada_moe_num_experts_list": None}
IN_EVALUATION: dict[str, tuple[dict[str, Any], str]] = {
    **{name: ({name: 0.1}, NO_EFFECT.format(name)) for name in ("aux_loss_coef", "lpr_loss_coef")},
    **{name: ({name: 0.1}, NO_EFFECT.format(name)) for name in ("classify_loss_coef", "sequential_add_loss_coef")},
    **{name: ({name: True}, NO_EFFECT.format(name)) for name in ("aux_loss_per_sequence", "lpr_double_softmax")},
    **{name: ({name: True}, NO_EFFECT.format(name)) for name in ("train_only_router", "sequential_add_mask")},
    "masks": (
        {"generate_lang_mask": True, "original_languages": "en"},
        NO_EFFECT.format("generate_lang_mask, original_languages"),
    ),
    "other experts": ({"ada_moe_num_experts_list": "2,1,1,2"}, r"is \[2, 1, 1, 2\], but the adapter .* \[3, 1, 1, 2\]"),
    "an extension": (
        {"old_moe_num_experts_list": "3,1,1,2", "ada_moe_num_experts_list": "4,1,1,2"},
        "old_moe_num_experts_list would extend the adapter by experts that learn nothing: set do_train: true",
    ),
    "older experts": ({"old_moe_num_experts_list": "2,1,1,2"}, "has no effect without training, since the adapter has"),
    "new classifiers": (
        {"old_moe_num_experts_list": "3,1,1,2", "group_nums": 2},
        "group_nums adds classifiers that nothing would train",
    ),
    "topk of no layer": ({"topk": 4}, "topk is 4, but no layer has more than 3 experts"),
}


@pytest.mark.parametrize(("overrides", "message"), NEW_ADAPTER.values(), ids=NEW_ADAPTER.keys())
def test_training_a_new_adapter(moe_args: dict[str, Any], overrides: dict[str, Any], message: str) -> None:
    assert re.search(message, refusal(moe_args | overrides))


@pytest.mark.parametrize(("overrides", "message"), IN_EVALUATION.values(), ids=IN_EVALUATION.keys())
def test_evaluation(moe_args: dict[str, Any], adapter: str, overrides: dict[str, Any], message: str) -> None:
    args = moe_args | EVALUATION | {"adapter_name_or_path": adapter}
    assert re.search(message, refusal({key: value for key, value in (args | overrides).items() if value is not None}))


@pytest.fixture(scope="module")
def adapter(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained adapter of experts 3, 1, 1, 2."""
    return save_adapter(tmp_path_factory.mktemp("adapters") / "stage1", tiny_model_dir, num_experts=[3, 1, 1, 2])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"adapter_name_or_path": None}, "moe without training needs an adapter: set adapter_name_or_path"),
        ({"adapter_name_or_path": "nowhere"}, "adapter_name_or_path: nowhere does not exist"),
        ({"generate_lang_mask": True}, NO_EFFECT.format("generate_lang_mask")),
        ({"quantization_bit": 4}, "moe does not work with quantization_bit"),
        ({"vllm_maxlen": 9}, "no effect with finetuning_type: moe: vllm_maxlen"),
        ({"model_name_or_path": "nowhere"}, "model_name_or_path: nowhere does not exist"),
    ],
)
def test_chat_and_export(tiny_model_dir: Path, adapter: str, more: dict[str, Any], message: str) -> None:
    from llamafactory.hparams import get_infer_args

    args = {"model_name_or_path": str(tiny_model_dir), "adapter_name_or_path": adapter, "finetuning_type": "moe"}
    assert get_infer_args(args | {"template": "empty", "topk": 3})[2].topk == 3
    with pytest.raises(UserError, match=message) as error:
        get_infer_args({key: value for key, value in (args | more).items() if value is not None})
    assert "\n" not in str(error.value)


def test_what_the_host_parses_beside_its_result_is_left_out(
    tiny_model_dir: Path, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As KTransformers' settings are in LLaMA-Factory 0.9.6.dev0."""
    from llamafactory.hparams import parser

    beside = dataclasses.make_dataclass("Beside", [("beside", str, "")])
    monkeypatch.setattr(parser, "_INFER_ARGS", [*parser._INFER_ARGS, beside])
    args = {"model_name_or_path": str(tiny_model_dir), "adapter_name_or_path": adapter, "finetuning_type": "moe"}
    assert len(parser.get_infer_args(args | {"template": "empty"})) == 4


@pytest.mark.parametrize(
    "more",
    [
        {"topk": 3},
        {"topk": 1},
        {"layers_to_moe": "0,3"},
        {"ada_moe_num_experts_list": "3,2", "layers_to_moe": "0,3"},
        {"lpr_loss_coef": 0, "generate_lang_mask": True},
        {"moe_every_k_layers": 1, "save_all_params": False},
        ALL_LAYERS | {"layers_to_moe": 3},
    ],
)
def test_what_has_an_effect_is_taken(moe_args: dict[str, Any], more: dict[str, Any]) -> None:
    from llamafactory.hparams import get_train_args

    assert get_train_args(moe_args | more)[3].finetuning_type == "moe"


def test_evaluation_of_an_adapter(moe_args: dict[str, Any], adapter: str) -> None:
    from llamafactory.hparams import get_train_args

    for more in ({}, {"topk": 1}, {"ada_moe_num_experts_list": "3,1,1,2"}, {"lpr_loss_coef": 0}):
        args = moe_args | EVALUATION | {"adapter_name_or_path": adapter} | more
        assert get_train_args(args)[2].do_eval
