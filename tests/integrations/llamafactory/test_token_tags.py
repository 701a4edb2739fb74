"""Every token's language mask and group against the script that the token is written in."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

EOS = 2
GROUPS = {"sequential_add_mask": True, "sequential_add_loss_coef": 0.1}


def load_train_dataset(args: dict[str, Any], **overrides: Any) -> Any:
    """What LLaMA-Factory would train on."""
    return load_datasets(args, **overrides)["train_dataset"]


def load_datasets(args: dict[str, Any], **overrides: Any) -> Any:
    """LLaMA-Factory's data sets by name."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    model_args, data_args, training_args, finetuning_args, _ = get_train_args(args | overrides)
    tokenizer_module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(tokenizer_module["tokenizer"], data_args)
    return get_dataset(template, model_args, data_args, training_args, finetuning_args.stage, **tokenizer_module)


def expected_mask(token_ids: list[int], tiny_model_dir: Path) -> list[int]:
    """1 for the bytes of Latin letters, 0 for those of Greek ones; an EOS is as the token before it."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(tiny_model_dir).convert_ids_to_tokens(token_ids)
    mask: list[int] = []
    for token in tokens:
        mask.append(mask[-1] if token == "</s>" else int(token.isascii() and token.isalpha()))
    return mask


def expected_groups(token_ids: list[int], tiny_model_dir: Path) -> list[int]:
    """Latin letters are in group 0, Greek ones in group 1."""
    return [1 - is_old for is_old in expected_mask(token_ids, tiny_model_dir)]


@pytest.mark.parametrize("mix_strategy", ["concat", "interleave_over"])
@pytest.mark.parametrize(
    "tags",
    [{"dataset": "en_odd,el_odd"}, {"dataset": "en_coded,el_coded", "original_languages": "es,en"}],
    ids=["old-new", "codes"],
)
def test_packed_blocks(moe_args: dict[str, Any], tiny_model_dir: Path, tags: dict[str, str], mix_strategy: str) -> None:
    dataset = load_train_dataset(moe_args, generate_lang_mask=True, cutoff_len=48, mix_strategy=mix_strategy, **tags)
    token_ids, mask = (list(chain(*dataset[name])) for name in ("input_ids", "old_language_mask"))
    assert all(len(block) == 48 for block in dataset["old_language_mask"])
    assert mask == expected_mask(token_ids, tiny_model_dir)
    mixed = sum(0 < sum(block) < 48 for block in dataset["old_language_mask"])
    assert mixed >= (50 if mix_strategy == "interleave_over" else 1)
    assert any(mask[i] for i, token in enumerate(token_ids) if token == EOS)
    assert not all(mask[i] for i, token in enumerate(token_ids) if token == EOS)


def test_worker_processes_make_the_same_mask(moe_args: dict[str, Any], tiny_model_dir: Path) -> None:
    dataset = load_train_dataset(
        moe_args, dataset="en_odd,el_odd", generate_lang_mask=True, preprocessing_num_workers=2, overwrite_cache=True
    )
    token_ids, mask = (list(chain(*dataset[name])) for name in ("input_ids", "old_language_mask"))
    assert mask == expected_mask(token_ids, tiny_model_dir)


def test_unpacked_texts(moe_args: dict[str, Any], tiny_model_dir: Path) -> None:
    dataset = load_train_dataset(
        moe_args, dataset="en_odd,el_odd", generate_lang_mask=True, packing=False, cutoff_len=20
    )
    assert len(dataset) == 300
    assert max(map(len, dataset["input_ids"])) == 20
    for token_ids, mask in zip(dataset["input_ids"], dataset["old_language_mask"], strict=True):
        assert mask == expected_mask(token_ids, tiny_model_dir)


def test_conversations(moe_args: dict[str, Any]) -> None:
    dataset = load_train_dataset(
        moe_args, dataset="en_chat,el_chat", stage="sft", template="empty", generate_lang_mask=True, cutoff_len=200
    )
    assert [set(mask) for mask in dataset["old_language_mask"]] == [{1}] * 5 + [{0}] * 5
    assert list(map(len, dataset["old_language_mask"])) == list(map(len, dataset["input_ids"]))


@pytest.mark.parametrize("together", [False, True], ids=["alone", "beside the mask"])
@pytest.mark.parametrize("packing", [True, False], ids=["packed", "unpacked"])
def test_groups(moe_args: dict[str, Any], tiny_model_dir: Path, together: bool, packing: bool) -> None:
    with_mask = {"generate_lang_mask": True} if together else {}
    data = {"dataset": "en_odd,el_odd", "cutoff_len": 48, "packing": packing}
    dataset = load_train_dataset(moe_args, **GROUPS, **data, **with_mask)
    tags = ["group_tags", "old_language_mask"] if together else ["group_tags"]
    assert sorted(dataset.column_names) == sorted(["attention_mask", "input_ids", *tags])
    for name, expected in (("group_tags", expected_groups), ("old_language_mask", expected_mask)):
        if name in tags:
            assert list(chain(*dataset[name])) == expected(list(chain(*dataset["input_ids"])), tiny_model_dir)
    assert list(map(len, dataset["group_tags"])) == list(map(len, dataset["input_ids"]))
    assert any(set(groups) == {0, 1} for groups in dataset["group_tags"]) == packing


def test_groups_of_conversations_beside_the_mask(moe_args: dict[str, Any]) -> None:
    data = {"dataset": "en_chat,el_chat", "stage": "sft", "template": "empty", "cutoff_len": 200}
    dataset = load_train_dataset(moe_args, **GROUPS, **data, generate_lang_mask=True)
    assert [set(groups) for groups in dataset["group_tags"]] == [{0}] * 5 + [{1}] * 5
    assert [set(mask) for mask in dataset["old_language_mask"]] == [{1}] * 5 + [{0}] * 5
    assert list(map(len, dataset["group_tags"])) == list(map(len, dataset["input_ids"]))


def test_evaluation_data_has_its_own_tags(moe_args: dict[str, Any], tiny_model_dir: Path) -> None:
    data = {"dataset": "en_odd", "eval_dataset": "el_even,en_even", "eval_strategy": "steps", "eval_steps": 2}
    dataset = load_datasets(moe_args, **GROUPS, **data, generate_lang_mask=True)["eval_dataset"]
    token_ids = list(chain(*dataset["input_ids"]))
    assert list(chain(*dataset["group_tags"])) == expected_groups(token_ids, tiny_model_dir)
    assert list(chain(*dataset["old_language_mask"])) == expected_mask(token_ids, tiny_model_dir)


def test_no_tags_without_being_asked_for(moe_args: dict[str, Any]) -> None:
    dataset = load_train_dataset(moe_args, dataset="en_odd,el_odd")
    assert sorted(dataset.column_names) == ["attention_mask", "input_ids"]


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_collator_pads_as_the_hosts_does(tiny_model_dir: Path, padding_side: str) -> None:
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    from neuronmoe_plugins.integrations.llamafactory.token_tags import TokenTagCollator

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir, padding_side=padding_side)
    collator = TokenTagCollator(DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm=False))
    features = [
        {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "old_language_mask": [1, 0, 1], "group_tags": [0, 2, 0]},
        {"input_ids": [8], "attention_mask": [1], "old_language_mask": [1], "group_tags": [1]},
    ]
    batch = collator(features)
    assert batch["old_language_mask"].dtype == batch["group_tags"].dtype == torch.int64
    right = padding_side == "right"
    assert batch["old_language_mask"].tolist() == [[1, 0, 1], [1, 0, 0] if right else [0, 0, 1]]
    assert batch["group_tags"].tolist() == [[0, 2, 0], [1, -100, -100] if right else [-100, -100, 1]]
    assert torch.equal(batch["attention_mask"][1], batch["old_language_mask"][1])
    without = collator([{"input_ids": [5], "attention_mask": [1]}])
    assert without.keys().isdisjoint({"old_language_mask", "group_tags"})
    alone = collator([{"input_ids": [5], "attention_mask": [1], "group_tags": [1]}])
    assert "group_tags" in alone
    assert "old_language_mask" not in alone
