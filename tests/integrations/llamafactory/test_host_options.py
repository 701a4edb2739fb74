"""Options of LLaMA-Factory that meet a mixture: generation in evaluation, accuracy, counted tokens, plots, help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from training_runs import train
from transformers import AutoModelForCausalLM, AutoTokenizer

NEW_TOKENS = 12
TAGS = {"generate_lang_mask": True, "lpr_loss_coef": 0.1}


@pytest.fixture
def sft_args(moe_args: dict[str, Any]) -> dict[str, Any]:
    sft = {"stage": "sft", "template": "empty", "dataset": "en_chat,el_chat", "eval_dataset": "en_chat,el_chat"}
    return moe_args | sft | {"per_device_eval_batch_size": 10, "max_steps": 2}


def read(file: Path) -> dict[str, float]:
    return json.loads(file.read_text())


@pytest.mark.parametrize("tags", [{}, TAGS])
def test_a_batch_generates_what_each_prompt_alone_does(
    tags: dict[str, Any], sft_args: dict[str, Any], tmp_path: Path
) -> None:
    generate = {"predict_with_generate": True, "do_eval": True, "do_predict": True, "do_sample": False}
    sizes = {"max_new_tokens": NEW_TOKENS, "learning_rate": 0.05, "max_steps": 8}
    output = tmp_path / "output"
    train(sft_args, output, **generate, **sizes, **tags)
    assert {"eval_rouge-1", "eval_bleu-4"} <= read(output / "eval_results.json").keys()
    base = AutoModelForCausalLM.from_pretrained(sft_args["model_name_or_path"])
    tokenizer = AutoTokenizer.from_pretrained(sft_args["model_name_or_path"])
    model = PeftModel.from_pretrained(base, output).eval()
    rows = [json.loads(line) for line in (output / "generated_predictions.jsonl").read_text().splitlines()]
    assert len({len(row["prompt"]) for row in rows}) > 5
    for row in rows:
        encoding = tokenizer(row["prompt"], add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            tokens = model.generate(**encoding, do_sample=False, max_new_tokens=NEW_TOKENS)
        alone = tokenizer.decode(tokens[0, encoding["input_ids"].shape[1] :], skip_special_tokens=True)
        assert row["predict"] == alone, row["prompt"]


def test_evaluation_with_and_without_tags(sft_args: dict[str, Any], tmp_path: Path) -> None:
    """The losses are not part of an evaluation, so that tags change nothing there."""
    results = []
    for name, tags in {"plain": {}, "tagged": TAGS}.items():
        options = {"do_eval": True, "learning_rate": 0.0, "compute_accuracy": True}
        train(sft_args, tmp_path / name, **options, **tags)
        results.append(read(tmp_path / name / "eval_results.json"))
    for metric in ("eval_loss", "eval_accuracy"):
        assert results[0][metric] == pytest.approx(results[1][metric], abs=1e-6)
    assert 0 <= results[0]["eval_accuracy"] < 1


@pytest.mark.parametrize("counted", [True, "all", "non_padding"])
def test_input_tokens_are_counted(counted: bool | str, sft_args: dict[str, Any], tmp_path: Path) -> None:
    options = {"per_device_train_batch_size": 10, "num_train_epochs": 1, "max_steps": -1, "plot_loss": True}
    options |= {"include_num_input_tokens_seen": counted, "include_effective_tokens_per_second": True}
    (step,) = train(sft_args, tmp_path / "output", **options, **TAGS)
    latin = [3 + i + 5 for i in range(6) if i != 1]  # letters of instruction and answer, each a token
    greek = [2 * letters for letters in latin]
    padded = 10 * -(-max(greek) // 8) * 8
    assert step["num_input_tokens_seen"] == (sum(latin + greek) if counted == "non_padding" else padded)
    assert read(tmp_path / "output" / "train_results.json")["effective_tokens_per_sec"] > 0
    assert (tmp_path / "output" / "training_loss.png").stat().st_size > 0


def test_help_lists_the_arguments() -> None:
    from neuronmoe_plugins.integrations.llamafactory.arguments import MoeDataArguments, MoeFinetuningArguments

    command = [Path(sys.executable).parent / "llamafactory-cli", "train", "--help"]
    result = subprocess.run(command, env=os.environ | {"COLUMNS": "200"}, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    text = " ".join(result.stdout.split())
    assert "{lora,oft,freeze,full,moe}" in text
    for kind in (MoeFinetuningArguments, MoeDataArguments):
        inherited = {field.name for field in fields(kind.__mro__[1])}
        added = [field for field in fields(kind) if field.name not in inherited]
        assert added
        for field in added:
            assert f"--{field.name} " in text
            assert field.metadata["help"][:60] in text, field.name
