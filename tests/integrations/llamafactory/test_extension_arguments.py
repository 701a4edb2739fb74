"""The YAML keys of continual extension: what an adapter's configuration becomes, and every bad input."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from training_runs import refusal, save_adapter

from neuronmoe_plugins.errors import UserError

EXTENDED = {"old_moe_num_experts_list": "3,1,1,2", "ada_moe_num_experts_list": "4,1,2,2"}
CLASSIFY = {"classify_loss_coef": 0.1, "sequential_add_mask": True, "dataset": "en_even,el_even"}
STAGE2 = {"ada_moe_num_experts_list": None, "train_only_router": True, **CLASSIFY}
FIRST_AND_LAST = {"num_experts": [3, 2], "layers_to_transform": [0, 3], "expert_rank": [4, 8]}
ROUTED = STAGE2 | {"old_moe_num_experts_list": "3,1,1,2", "group_nums": "2,0,0,2"}


def parse(args: dict[str, Any]) -> tuple[Any, ...]:
    from llamafactory.hparams import get_train_args

    return get_train_args(args)


@pytest.fixture
def save_config(tmp_path: Path, tiny_model_dir: Path) -> Any:
    """Save an untrained adapter with such a configuration, and return its folder."""
    return partial(save_adapter, tmp_path / "old", tiny_model_dir)


def loaded_config(args: dict[str, Any]) -> Any:
    """The configuration of the run's adapter."""
    from neuronmoe_plugins.integrations.llamafactory.adapter import load_or_make_config

    model_args, _, _, finetuning_args, _ = parse(args)
    return load_or_make_config(model_args, finetuning_args, 4)


@pytest.mark.parametrize(
    ("adapter", "overrides"),
    [
        ({"num_experts": [3, 1, 1, 2]}, {}),
        ({"num_experts": [3, 2], "layers_to_transform": [0, 3]}, {}),
        ({"num_experts": [3, 1, 1, 2], "layers_to_transform": [0, 3]}, {}),
        ({"num_experts": [2, 3], "layers_to_transform": [3, 0]}, {"old_moe_num_experts_list": "2,3"}),
        ({"num_experts": [3, 1, 1, 2]}, {"old_moe_num_experts_list": [3, 1, 1, 2]}),
        ({"num_experts": [3, 2, 1, 2], "old_num_experts": [2, 1, 1, 1]}, {"old_moe_num_experts_list": "3,2,1,2"}),
    ],
)
def test_an_extension_knows_old_and_new_counts(
    moe_args: dict[str, Any], save_config: Any, adapter: dict[str, Any], overrides: dict[str, Any]
) -> None:
    new = "4,2,2,2"
    args = moe_args | EXTENDED | {"adapter_name_or_path": save_config(**adapter), "ada_moe_num_experts_list": new}
    config = loaded_config(args | overrides)
    old = [3, 2, 1, 2] if adapter.get("old_num_experts") else [3, 1, 1, 2]
    assert (config.num_experts, config.old_num_experts) == ([4, 2, 2, 2], old)
    plans = config.layer_plans(4)
    assert {layer: plan.num_frozen for layer, plan in plans.items()} == dict(enumerate(old))


def test_one_count_for_all_layers_is_extended(moe_args: dict[str, Any], save_config: Any) -> None:
    args = moe_args | {"adapter_name_or_path": save_config(num_experts=2), "old_moe_num_experts_list": "2,2,2,2"}
    config = loaded_config(args | {"ada_moe_num_experts_list": None, "moe_num_experts": 3})
    assert (config.num_experts, config.old_num_experts) == ([3] * 4, [2] * 4)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [("2,0,0,2", [2, 0, 0, 2]), ([3, 0, 0, 2], [3, 0, 0, 2]), (2, [2, 0, 0, 2]), ("2", [2, 0, 0, 2])],
)
def test_continuing_with_group_routing(
    moe_args: dict[str, Any], save_config: Any, groups: Any, expected: list[int]
) -> None:
    path = save_config(num_experts=[3, 1, 1, 2], aux_loss_coef=0.01, aux_loss_per_sequence=True)
    for counts in (None, "3,1,1,2"):
        given = {"adapter_name_or_path": path, "group_nums": groups, "ada_moe_num_experts_list": counts}
        config = loaded_config(moe_args | ROUTED | given)
        assert (config.num_experts, config.old_num_experts) == ([3, 1, 1, 2], [3, 1, 1, 2])
        assert config.group_nums == expected
        assert {plan.num_frozen for plan in config.layer_plans(4).values()} == {1}
        assert (config.classify_loss_coef, config.aux_loss_per_sequence) == (0.1, False)


def test_an_adapter_keeps_its_old_experts_and_groups(moe_args: dict[str, Any], save_config: Any) -> None:
    own = {"num_experts": [4, 1, 2, 2], "old_num_experts": [3, 1, 1, 2], "group_nums": [3, 0, 0, 3]}
    args = moe_args | STAGE2 | {"adapter_name_or_path": save_config(**own)}
    config = loaded_config(args)
    assert {name: getattr(config, name) for name in own} == own
    config = loaded_config(args | {"old_moe_num_experts_list": "4,1,2,2"})
    assert (config.old_num_experts, config.group_nums) == ([4, 1, 2, 2], [3, 0, 0, 3])


def test_an_adapter_with_experts_that_no_group_uses_stays_as_it_is(moe_args: dict[str, Any], save_config: Any) -> None:
    own = {"num_experts": [4, 1, 2, 2], "old_num_experts": [3, 1, 1, 2], "group_nums": [2, 0, 0, 2]}
    config = loaded_config(moe_args | STAGE2 | {"adapter_name_or_path": save_config(**own)})
    assert {name: getattr(config, name) for name in own} == own


def test_an_extension_can_drop_classifiers(moe_args: dict[str, Any], save_config: Any) -> None:
    own = {"num_experts": [3, 1, 1, 2], "old_num_experts": [3, 1, 1, 2], "group_nums": 2}
    args = moe_args | EXTENDED | {"adapter_name_or_path": save_config(**own)}
    assert loaded_config(args | {"group_nums": 0}).group_nums is None
    with pytest.raises(UserError, match=r"group_nums is 2 in layers \[0\], .* while new experts learn, group_nums: 0"):
        parse(args)


def test_equal_counts_in_another_form_are_the_adapters(moe_args: dict[str, Any], save_config: Any) -> None:
    for adapter, counts in (
        ({"num_experts": 2}, {"ada_moe_num_experts_list": "2,2,2,2"}),
        ({"num_experts": [3, 2], "layers_to_transform": [0, 3]}, {"ada_moe_num_experts_list": "3,1,1,2"}),
        ({"num_experts": [3, 1, 1, 2]}, {"ada_moe_num_experts_list": "3,2", "layers_to_moe": "0,3"}),
        ({"num_experts": [3, 1, 1, 2]}, {"ada_moe_num_experts_list": None, "layers_to_moe": "3,0"}),
    ):
        config = loaded_config(moe_args | {"adapter_name_or_path": save_config(**adapter)} | counts)
        assert config.num_experts == adapter["num_experts"]


def test_help_has_the_new_keys() -> None:
    import llamafactory.hparams.parser as host
    from transformers import HfArgumentParser

    text = HfArgumentParser(host._TRAIN_ARGS).format_help()
    for key in ("old_moe_num_experts_list", "group_nums", "classify_loss_coef", "sequential_add_loss_coef"):
        assert f"--{key}" in text
    assert "--sequential_add_mask" in text
    assert "--aux_loss_per_sequence" in text


FRESH: dict[str, tuple[dict[str, Any], str]] = {
    "moe keys with lora": (
        {"finetuning_type": "lora", "ada_moe_num_experts_list": None, "group_nums": 2, "aux_loss_per_sequence": True},
        "group_nums, aux_loss_per_sequence: only valid with finetuning_type: moe",
    ),
    "groups with lora": (
        {"finetuning_type": "lora", "ada_moe_num_experts_list": None, "sequential_add_mask": True},
        "sequential_add_mask: only valid with finetuning_type: moe",
    ),
    "no integers": ({"group_nums": "2,two"}, "group_nums must be a list of integers such as 6,2,1; got '2,two'"),
    "old experts of nothing": ({"old_moe_num_experts_list": "3,1,1,2"}, "old_moe_num_experts_list .*adapter_name_or"),
    "groups of nothing": (CLASSIFY | {"group_nums": 2}, "set adapter_name_or_path and old_moe_num_experts_list"),
    "no classifier": (CLASSIFY, "classify_loss_coef has no classifier to train: set group_nums"),
    "classify without tags": ({"classify_loss_coef": 0.1}, "classify_loss_coef: .*set sequential_add_mask: true"),
    "sequential add without tags": (
        {"sequential_add_loss_coef": 0.1, "classify_loss_coef": 0.1},
        "classify_loss_coef and sequential_add_loss_coef: .*set sequential_add_mask: true",
    ),
    "tags without a loss": (
        {"sequential_add_mask": True},
        "sequential_add_mask has no effect without classify_loss_coef or sequential_add_loss_coef",
    ),
    "balance of nothing": ({"aux_loss_per_sequence": True}, "aux_loss_per_sequence has no effect without aux_loss_c"),
    "negative coefficient": (
        {"sequential_add_loss_coef": -1.0, "sequential_add_mask": True},
        "sequential_add_loss_coef must not be negative",
    ),
}
ADD = {"sequential_add_loss_coef": 0.1, "sequential_add_mask": True}
FRESH |= {
    "reentrant checkpointing": (
        ADD | {"use_reentrant_gc": True},
        "sequential_add_loss_coef would .*set use_reen",
    ),
    "reentrant checkpointing of classifiers": (CLASSIFY | {"use_reentrant_gc": True}, "classify_loss_coef would have"),
    "untagged data": (
        ADD | {"dataset": "en_even,en_coded"},
        'info.json: sequential_add_mask needs a "group_tag".*en',
    ),
    "untagged evaluation data": (ADD | {"eval_dataset": "untagged"}, "but untagged has none"),
    "a group without experts": (ADD | {"dataset": "el_even,el_third"}, "the tokens of el_third to no expert"),
}
FRESH |= {
    f"group tag {tag!r}": (
        ADD | {"dataset": f"group_{tag}"},
        f'dataset_info.json: group_{tag}: "group_tag" must be "g0", "g1" .*; got {tag!r}',
    )
    for tag in ("second", "1", -1, 0.5, True)
}
LOADED: dict[str, tuple[dict[str, Any], str]] = {
    "old counts of another adapter": (
        EXTENDED | {"old_moe_num_experts_list": "2,1,1,2"},
        r"old_moe_num_experts_list is \[2, 1, 1, 2\] and ada_moe_num_experts_list \[4, 1, 2, 2\], but .*\[3, 1, 1, 2\]",
    ),
    "more old experts than there are": (
        {"ada_moe_num_experts_list": None, "old_moe_num_experts_list": "4,1,1,2"},
        r"old_moe_num_experts_list is \[4, 1, 1, 2\], but .*old has \[3, 1, 1, 2\], fewer in layers \[0\]",
    ),
    "fewer experts": (
        EXTENDED | {"ada_moe_num_experts_list": "4,1,2,1"},
        r"ada_moe_num_experts_list is \[4, 1, 2, 1\], below .* in layers \[3\]: an extension only adds",
    ),
    "no old counts": (
        {"ada_moe_num_experts_list": "4,1,2,2"},
        r"ada_moe_num_experts_list is \[4, 1, 2, 2\], but .* to extend the adapter, give its counts in old_moe_num_exp",
    ),
    "other layers": ({"ada_moe_num_experts_list": None, "layers_to_moe": "0,1"}, r"layers_to_moe is \[0, 1\], but "),
    "short old list": (EXTENDED | {"old_moe_num_experts_list": "3,1"}, "old_moe_num_experts_list has 2 entries"),
    "short groups": (ROUTED | {"group_nums": "2,2"}, "group_nums has 2 entries"),
    "nothing new": (
        {"old_moe_num_experts_list": "3,1,1,2"},
        "old_moe_num_experts_list has no effect: .*Give larger counts in ada_moe_num_experts_list .*or group_nums",
    ),
    "groups without old experts": (
        STAGE2 | {"group_nums": 2},
        "group_nums needs old_moe_num_experts_list, the experts",
    ),
    "no groups": ({"group_nums": "0,0,0,0"}, r"group_nums is \[0, 0, 0, 0\] and has no effect"),
    "one group": (ROUTED | {"group_nums": "1,0,0,0"}, r"group_nums must be 0 \(no classifier\) or at least 2; got 1"),
    "groups of a dense layer": (ROUTED | {"group_nums": "0,2,0,0"}, "only to layers that stay dense"),
    "classifiers without loss": (
        {"old_moe_num_experts_list": "3,1,1,2", "group_nums": 2},
        "group_nums adds classifiers that nothing would train: set classify_loss_coef",
    ),
    "unreachable experts": (
        EXTENDED | CLASSIFY | {"group_nums": "0,0,2,2"},
        r"group_nums is 2 in layers \[2\], where .* nothing uses the others",
    ),
    "unknown group": (
        ROUTED | {"dataset": "en_even,el_third"},
        'dataset_info.json: el_third: "group_tag" is group 2, but group_nums has 2, which are 0 to 1',
    ),
    "unknown group of evaluation data": (ROUTED | {"eval_dataset": "el_third"}, "el_third: .*group 2, but group_nums"),
}


@pytest.mark.parametrize(("overrides", "message"), FRESH.values(), ids=FRESH.keys())
def test_bad_input_is_named(moe_args: dict[str, Any], overrides: dict[str, Any], message: str) -> None:
    assert re.search(message, refusal(moe_args | overrides))


@pytest.mark.parametrize(("overrides", "message"), LOADED.values(), ids=LOADED.keys())
def test_bad_input_beside_an_adapter_is_named(
    moe_args: dict[str, Any], save_config: Any, overrides: dict[str, Any], message: str
) -> None:
    path = save_config(num_experts=[3, 1, 1, 2])
    assert re.search(message, refusal(moe_args | {"adapter_name_or_path": path} | overrides))


def test_other_groups_than_the_adapters(moe_args: dict[str, Any], save_config: Any) -> None:
    own = {"num_experts": [3, 1, 1, 2], "old_num_experts": [3, 1, 1, 2], "group_nums": [2, 0, 0, 2]}
    with pytest.raises(UserError, match=r"group_nums is 3, but .* classifiers of \[2, 0, 0, 2\]: remove the key, or"):
        parse(moe_args | STAGE2 | {"adapter_name_or_path": save_config(**own), "group_nums": 3})


def test_new_layers_have_no_rank_in_a_list_of_others(moe_args: dict[str, Any], save_config: Any) -> None:
    args = moe_args | EXTENDED | {"adapter_name_or_path": save_config(**FIRST_AND_LAST)}
    assert refusal(args) == (
        f"ada_moe_num_experts_list is [4, 1, 2, 2], but the adapter in {args['adapter_name_or_path']} has no rank for "
        "layers [2]: its ranks [4, 8] are of layers [0, 3], extend these alone"
    )
    config = loaded_config(args | {"ada_moe_num_experts_list": "4,1,1,3"})
    assert [plan.expert_rank for plan in config.layer_plans(4).values()] == [4, 8]


def test_an_adapter_of_a_larger_model(moe_args: dict[str, Any], tmp_path: Path) -> None:
    from neuronmoe_plugins.tuner import MoeConfig

    path = str(tmp_path / "old")
    MoeConfig(task_type="CAUSAL_LM", num_experts=[3, 1, 1, 2, 2]).save_pretrained(path)
    with pytest.raises(UserError, match=r"adapter_name_or_path: .*old does not fit the model: num_experts has 5 entr"):
        parse(moe_args | {"adapter_name_or_path": path, "ada_moe_num_experts_list": None})
