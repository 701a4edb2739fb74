"""Tags that could get lost, or be those of other settings: an error before the model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from received_batches import TAGS
from training_runs import save_adapter

from neuronmoe_plugins.errors import UserError

TEXTS = {"dataset": "en_coded,el_coded", "generate_lang_mask": True, "original_languages": "en"}
CHAT = {"stage": "sft", "template": "empty", "dataset": "en_chat,el_chat"}


def parse(args: dict[str, Any]) -> tuple[Any, ...]:
    from llamafactory.hparams import get_train_args

    arguments: tuple[Any, ...] = get_train_args(args)
    return arguments


def load(arguments: tuple[Any, ...]) -> dict[str, Any]:
    """LLaMA-Factory's data sets, as its training loads them."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.model import load_tokenizer

    model_args, data_args, training_args, finetuning_args, _ = arguments
    tokenizer_module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(tokenizer_module["tokenizer"], data_args)
    datasets: dict[str, Any] = get_dataset(
        template, model_args, data_args, training_args, finetuning_args.stage, **tokenizer_module
    )
    return datasets


@pytest.mark.parametrize(
    ("written", "read", "message"),
    [
        ({"generate_lang_mask": False, "original_languages": None}, {}, "tokenised without generate_lang_mask: remove"),
        ({}, {"original_languages": "el"}, r"{'en_coded': 1, 'el_coded': 0}, not {'en_coded': 0, 'el_coded': 1}: rem"),
        ({}, {"dataset": "en_coded"}, r"not {'en_coded': 1}: remove"),
        ({}, {"dataset": "en_odd,el_odd", **TAGS, "original_languages": None}, "without sequential_add_mask"),
    ],
    ids=["no tags", "other languages", "other data", "another tag"],
)
def test_tokenized_data_of_other_settings(
    moe_args: dict[str, Any], tmp_path: Path, written: dict[str, Any], read: dict[str, Any], message: str
) -> None:
    args = moe_args | TEXTS | {"tokenized_path": str(tmp_path / "tokens")}
    load(parse(args | written))
    with pytest.raises(UserError, match=f"tokenized_path: {tmp_path / 'tokens'} was .*{message}"):
        parse(args | read)


def test_damaged_record_of_tags(moe_args: dict[str, Any], tmp_path: Path) -> None:
    args = moe_args | TEXTS | {"tokenized_path": str(tmp_path / "tokens")}
    load(parse(args))
    (tmp_path / "tokens" / "neuronmoe_tags.json").write_text("{")
    with pytest.raises(UserError, match=r"neuronmoe_tags.json is not JSON .*; remove .*tokens to tokenise again$"):
        parse(args)


@pytest.mark.parametrize("streaming", [False, True])
def test_tags_that_are_not_asked_for_are_left_in_the_folder(
    moe_args: dict[str, Any], tmp_path: Path, streaming: bool
) -> None:
    args = moe_args | TEXTS | {"tokenized_path": str(tmp_path / "tokens")}
    assert "old_language_mask" in load(parse(args))["train_dataset"].column_names
    plain = {"generate_lang_mask": False, "original_languages": None, "streaming": streaming}
    dataset = load(parse(args | plain))["train_dataset"]
    assert sorted(next(iter(dataset))) == ["attention_mask", "input_ids"]
    assert "old_language_mask" in load(parse(args))["train_dataset"].column_names


@pytest.mark.parametrize("role", ["train", "validation_el_coded"])
def test_lost_columns_are_noticed(moe_args: dict[str, Any], tmp_path: Path, role: str) -> None:
    from datasets import DatasetDict, load_from_disk

    evaluation = {"eval_dataset": "el_coded", "eval_on_each_dataset": True, "eval_strategy": "steps", "eval_steps": 1}
    tokens = tmp_path / "tokens"
    args = moe_args | TEXTS | evaluation | {"tokenized_path": str(tokens)}
    load(parse(args))
    saved = load_from_disk(tokens)
    without = DatasetDict(saved | {role: saved[role].remove_columns("old_language_mask")})
    without.save_to_disk(tmp_path / "without")
    (tmp_path / "without" / "neuronmoe_tags.json").write_text((tokens / "neuronmoe_tags.json").read_text())
    part = "train" if role == "train" else "eval"
    with pytest.raises(UserError, match=f"generate_lang_mask: the {part}_dataset has no old_language_mask"):
        load(parse(args | {"tokenized_path": str(tmp_path / "without")}))


ONE_AFTER_THE_OTHER = "reads en_coded, el_coded one after the other, .*: set mix_strategy: interleave_over"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"streaming": True}, f"streaming: true {ONE_AFTER_THE_OTHER}"),
        ({"disable_shuffling": True}, f"disable_shuffling: true {ONE_AFTER_THE_OTHER}"),
        ({"train_sampling_strategy": "sequential"}, f"train_sampling_strategy: sequential {ONE_AFTER_THE_OTHER}"),
        ({"mix_strategy": "interleave_over", "interleave_probs": "0,1"}, "interleave_probs gives en_coded no share"),
    ],
    ids=["stream", "not shuffled", "sampled in order", "no share"],
)
def test_languages_one_after_the_other(moe_args: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    if "train_sampling_strategy" in settings and not is_argument("train_sampling_strategy"):
        pytest.skip("transformers has no such argument yet")
    with pytest.raises(UserError, match=message):
        parse(moe_args | TEXTS | settings)
    apart = {} if "interleave_probs" in settings else {"mix_strategy": "interleave_under"}
    one_language = {"generate_lang_mask": False, "original_languages": None} if apart == {} else {}
    parse(moe_args | TEXTS | settings | apart | one_language)


def is_argument(name: str) -> bool:
    from transformers import TrainingArguments

    return name in TrainingArguments.__dataclass_fields__


def test_a_stream_of_what_is_tokenised(moe_args: dict[str, Any], tmp_path: Path) -> None:
    args = moe_args | TEXTS | {"tokenized_path": str(tmp_path / "tokens")}
    load(parse(args))
    with pytest.raises(UserError, match=r"streaming: true reads tokenized_path in the order .*: remove streaming"):
        parse(args | {"streaming": True, "mix_strategy": "interleave_over"})


@pytest.mark.parametrize("settings", [{}, TEXTS | {"mix_strategy": "interleave_over"}], ids=["plain", "tagged"])
def test_stream_without_workers(moe_args: dict[str, Any], settings: dict[str, Any]) -> None:
    dataset = load(parse(moe_args | settings | {"streaming": True}))["train_dataset"]
    assert len(next(iter(dataset))["input_ids"]) == moe_args["cutoff_len"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"streaming": True, "val_size": 300}, "dataset: el_even: there is no text beyond val_size: 300"),
        ({"cutoff_len": 100_000}, "dataset: el_even: there are fewer tokens than the 100000 of cutoff_len"),
    ],
    ids=["all for validation", "no block"],
)
def test_nothing_to_train_on(moe_args: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        load(parse(moe_args | settings))


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({}, "packing: false"),
        ({"packing": False}, None),
        (CHAT | {"packing": True}, "neat_packing: true"),
        (CHAT, None),
        (CHAT | {"neat_packing": True}, None),
    ],
)
def test_the_log_says_that_texts_see_each_other(
    moe_args: dict[str, Any], settings: dict[str, Any], advice: str | None
) -> None:
    notes = [note for note in parse(moe_args | settings)[3].run.notes if "packing" in note]
    assert [note.endswith(f"set {advice} to keep them apart") for note in notes] == [True] * (advice is not None)


def test_data_sets_that_no_file_describes(moe_args: dict[str, Any]) -> None:
    with pytest.raises(UserError, match='dataset_dir: ONLINE: generate_lang_mask reads the "language"'):
        parse(moe_args | TEXTS | {"dataset_dir": "ONLINE"})


def test_classifiers_of_packed_conversations(moe_args: dict[str, Any], tiny_model_dir: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "old", tiny_model_dir, num_experts=[3, 1, 1, 2])
    classifiers = {"group_nums": "2,0,0,2", "old_moe_num_experts_list": "3,1,1,2", "ada_moe_num_experts_list": None}
    loss = {"classify_loss_coef": 0.1, "sequential_add_mask": True, "train_only_router": True}
    args = moe_args | CHAT | classifiers | loss | {"adapter_name_or_path": str(tmp_path / "old")}
    parse(args | {"packing": True})
    with pytest.raises(UserError, match="group_nums does not work with neat_packing"):
        parse(args | {"neat_packing": True})


def test_prompts_to_generate_from_have_no_tags(moe_args: dict[str, Any]) -> None:
    evaluation = {"eval_dataset": "el_chat", "eval_strategy": "steps", "eval_steps": 1}
    arguments = parse(moe_args | CHAT | evaluation | {"generate_lang_mask": True})
    arguments[2].predict_with_generate = True  # asked for in the YAML, it needs packages for its metrics
    datasets = load(arguments)
    assert "old_language_mask" in datasets["train_dataset"].column_names
    assert "old_language_mask" not in datasets["eval_dataset"].column_names


def test_a_batch_in_part_without_tags() -> None:
    from neuronmoe_plugins.integrations.llamafactory.token_tags import TokenTagCollator

    features = [{"input_ids": [5], "attention_mask": [1]}, {"input_ids": [5], "group_tags": [1], "attention_mask": [1]}]
    with pytest.raises(UserError, match="sequential_add_mask: some of the data has no group_tags"):
        TokenTagCollator(None)(features)


def test_flash_attention_drops_the_padding_of_packed_conversations(moe_args: dict[str, Any]) -> None:
    from llamafactory.data import SFTDataCollatorWith4DAttentionMask, get_template_and_fix_tokenizer
    from llamafactory.model import load_tokenizer

    from neuronmoe_plugins.integrations.llamafactory.token_tags import TokenTagCollator

    arguments = parse(moe_args | CHAT | TAGS | {"neat_packing": True})
    tokenizer = load_tokenizer(arguments[0])["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, arguments[1])
    flash = {"attn_implementation": "flash_attention_2", "neat_packing": True, "block_diag_attn": True}
    host = SFTDataCollatorWith4DAttentionMask(template=template, tokenizer=tokenizer, pad_to_multiple_of=8, **flash)
    for row in load(arguments)["train_dataset"]:
        real = sum(number > 0 for number in row["attention_mask"])
        batch = TokenTagCollator(host)([row])
        assert batch["attention_mask"] is None
        assert batch["group_tags"].tolist() == [row["group_tags"][:real]]
        assert batch["old_language_mask"].tolist() == [row["old_language_mask"][:real]]
        assert batch["input_ids"].shape == (1, real)


def test_record_holds_each_data_set(moe_args: dict[str, Any], tmp_path: Path) -> None:
    data = {"dataset": "en_odd", "eval_dataset": "el_odd", "eval_strategy": "steps", "eval_steps": 1}
    load(parse(moe_args | TAGS | data | {"tokenized_path": str(tmp_path / "tokens")}))
    assert json.loads((tmp_path / "tokens" / "neuronmoe_tags.json").read_text()) == {
        "old_language_mask": {"en_odd": 1, "el_odd": 0},
        "group_tags": {"en_odd": 0, "el_odd": 1},
    }
