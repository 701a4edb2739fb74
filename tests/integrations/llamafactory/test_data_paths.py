"""The tags of every token that the model receives, along each path of LLaMA-Factory's data, against its letters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from received_batches import TAGS, received_batches, sources_of, wrong_tags

from neuronmoe_plugins.tuner.inputs import count_items

TEXTS = {"dataset": "en_odd,el_odd"}
CHAT = {"stage": "sft", "template": "empty", "dataset": "en_chat,el_chat", "per_device_train_batch_size": 2}
STREAMED = {"streaming": True, "dataloader_num_workers": 1, "mix_strategy": "interleave_over"}
PATHS: dict[str, dict[str, Any]] = {
    "packed": {},
    "unpacked": {"packing": False},
    "interleaved under": {"mix_strategy": "interleave_under"},
    "interleaved over": {"mix_strategy": "interleave_over", "interleave_probs": "0.3,0.7"},
    "max_samples": {"max_samples": 9, "packing": False},
    "workers": {"preprocessing_num_workers": 2, "overwrite_cache": True},
    "hub": {"dataset": "en_hub,el_odd"},
    "streamed": STREAMED,
    "streamed, unpacked, without workers": STREAMED | {"dataloader_num_workers": 0, "packing": False},
    "streamed from the hub": STREAMED | {"dataset": "en_hub,el_hub", "mix_strategy": "interleave_under"},
    "conversations": CHAT,
    "packed conversations": CHAT | {"packing": True},
    "neatly packed conversations": CHAT | {"neat_packing": True},
    "conversations of workers": CHAT | {"neat_packing": True, "preprocessing_num_workers": 2, "overwrite_cache": True},
    "streamed conversations": CHAT | STREAMED,
    "streamed, neatly packed conversations": CHAT | STREAMED | {"neat_packing": True},
}
EVALUATED: dict[str, dict[str, Any]] = {
    "a part of the training data": TEXTS | {"val_size": 0.2},
    "a part of the stream": TEXTS | STREAMED | {"val_size": 20, "packing": False},
    "one set": {"dataset": "en_odd", "eval_dataset": "el_odd,en_even"},
    "each set": {"dataset": "en_odd", "eval_dataset": "el_odd,en_even", "eval_on_each_dataset": True},
    "a part of the packed conversations": CHAT | {"neat_packing": True, "val_size": 4},
    "each set of conversations": CHAT | {"eval_dataset": "el_chat,en_chat", "eval_on_each_dataset": True},
}


@pytest.fixture
def run_args(moe_args: dict[str, Any], data_dir: Path, tmp_path: Path) -> dict[str, Any]:
    """Arguments of a run with both tags; `en_hub` and `el_hub` are repositories of a hub, found on this machine."""
    folder = shutil.copytree(data_dir, tmp_path / "data")
    info = json.loads((folder / "dataset_info.json").read_text())
    for language in ("en", "el"):
        repository = folder / f"{language}_repository"
        repository.mkdir()
        shutil.copy(folder / f"{language}_odd.jsonl", repository / "train.jsonl")
        entry = {key: value for key, value in info[f"{language}_odd"].items() if key != "file_name"}
        info[f"{language}_hub"] = entry | {"hf_hub_url": str(repository)}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    every_block = {"max_steps": 4, "per_device_train_batch_size": 40}
    return moe_args | TAGS | TEXTS | {"dataset_dir": str(folder), **every_block}


@pytest.fixture
def tokenizer(tiny_model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_tags_in_training(run_args: dict[str, Any], tmp_path: Path, path: dict[str, Any], tokenizer: Any) -> None:
    batches, _ = received_batches(run_args, tmp_path / "run", **path)
    assert len(batches) == 4
    assert [wrong for batch in batches for wrong in wrong_tags(batch, tokenizer)] == []
    assert {0, 1} <= {number for batch in batches for number in batch["group_tags"].flatten().tolist()}


@pytest.mark.parametrize("path", EVALUATED.values(), ids=EVALUATED.keys())
def test_tags_in_evaluation(run_args: dict[str, Any], tmp_path: Path, path: dict[str, Any], tokenizer: Any) -> None:
    evaluation = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 2}
    batches, evaluated = received_batches(run_args, tmp_path / "run", **evaluation | path)
    assert batches
    assert [wrong for batch in batches + evaluated for wrong in wrong_tags(batch, tokenizer)] == []
    assert {0, 1} <= {number for batch in evaluated for number in batch["group_tags"].flatten().tolist()}


@pytest.mark.parametrize(
    ("path", "reload"),
    [({}, {}), (CHAT | {"neat_packing": True}, {}), ({"dataset": "en_odd,en_even"}, STREAMED)],
    ids=["texts", "packed conversations", "streamed"],
)
def test_tokenized_data_keeps_its_tags(
    run_args: dict[str, Any], tmp_path: Path, path: dict[str, Any], reload: dict[str, Any], tokenizer: Any
) -> None:
    evaluation = {"eval_dataset": path.get("dataset", "el_odd"), "eval_strategy": "steps", "eval_steps": 4}
    args = run_args | evaluation | path | {"tokenized_path": str(tmp_path / "tokens")}
    saved = received_batches(args, tmp_path / "saved")
    for name in ("en_odd", "en_even", "el_odd", "en_chat", "el_chat"):  # so that nothing can be tokenised anew
        (Path(args["dataset_dir"]) / f"{name}.jsonl").unlink()
    reloaded = received_batches(args, tmp_path / "reloaded", **reload)
    for batches, again in zip(saved, reloaded, strict=True):
        assert [wrong for batch in again for wrong in wrong_tags(batch, tokenizer)] == []
        assert len(again) == len(batches) > 0
        assert all("old_language_mask" in batch for batch in again)


def test_losses_of_packed_conversations_count_real_tokens(
    run_args: dict[str, Any], tmp_path: Path, tokenizer: Any
) -> None:
    batches, _ = received_batches(run_args, tmp_path / "run", **CHAT | {"neat_packing": True})
    for batch in batches:
        assert batch["attention_mask"].dim() == 4
        tokens = tokenizer.convert_ids_to_tokens(batch["input_ids"].flatten().tolist())
        sources = [source for row in batch["input_ids"].tolist() for source in sources_of(row, tokenizer)]
        assert "<pad>" in tokens
        counts = count_items(batch)
        assert counts["num_old_items_in_batch"] == sources.count("old")
        assert counts["num_target_items_in_batch"] == len(sources) - sources.count("padding")
    both = [{0, 1} <= set(row) for batch in batches for row in batch["group_tags"].tolist()]
    assert any(both), "no sequence packs both languages"
