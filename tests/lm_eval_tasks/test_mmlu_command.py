"""The command a user types: `lm_eval --model hf … --include_path … --tasks …`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

SUBJECT_NAMES_EL = {"sociology": "Κοινωνιολογία", "public_relations": "Δημόσιες σχέσεις"}


def run_lm_eval(
    python: Path, include_path: Path, model_args: str, tasks: str, output: Path, cache: Path
) -> dict[str, Any]:
    """Run the command; returns the results file. A fresh process of it is in `test_adapters.py`."""
    command = [str(python), "-m", "lm_eval", "--model", "hf", "--model_args", model_args, "--device", "cpu"]
    command += ["--include_path", str(include_path), "--tasks", tasks, "--output_path", str(output / "out.json")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "overrides existing task" not in done.stderr
    (results,) = output.glob("**/*.json")
    return dict(json.loads(results.read_text(encoding="utf-8")))


def best_choice(model: Any, tokenizer: Any, prompt: str) -> int:
    """Index of the most likely of the answers " A" to " D", computed with transformers alone."""
    import torch

    prompt_ids = tokenizer(prompt).input_ids
    scores = []
    for answer in ("A", "B", "C", "D"):
        answer_ids = tokenizer(f" {answer}", add_special_tokens=False).input_ids
        with torch.no_grad():
            logprobs = model(torch.tensor([prompt_ids + answer_ids])).logits[0].log_softmax(-1)
        positions = range(len(prompt_ids) - 1, len(prompt_ids) + len(answer_ids) - 1)
        scores.append(sum(logprobs[position, i].item() for position, i in zip(positions, answer_ids, strict=True)))
    return scores.index(max(scores))


def best_choices(model: Any, tokenizer: Any, subject: str, rows: list[dict[str, Any]]) -> list[int]:
    """The model's choice for every question, from the prompt that the task has to build."""
    introduction = "Ερωτήσεις πολλαπλής επιλογής με τις απαντήσεις τους. Θέμα: "
    chosen = []
    for row in rows:
        choices = "".join(f"{letter}. {text}\n" for letter, text in zip("ABCD", row["choices"], strict=True))
        prompt = f"{introduction}{SUBJECT_NAMES_EL[subject]}.\n\n{row['question'].strip()}\n{choices}Απάντηση:"
        chosen.append(best_choice(model, tokenizer, prompt))
    return chosen


def test_command_scores_a_group_with_an_adapter(
    greek: Any, adapter_dir: Path, tiny_model_dir: Path, tmp_path: Path, forked: Path
) -> None:
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    output = run_lm_eval(
        forked / "python",
        greek.include_path,
        f"pretrained={tiny_model_dir},peft={adapter_dir}",
        "mmlu_social_sciences_el",
        tmp_path / "out",
        tmp_path / "cache",
    )
    subjects = output["group_subtasks"]["mmlu_social_sciences_el"]
    assert len(subjects) == 12
    results = output["results"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    plain = {name: best_choices(base, tokenizer, name, greek.test[name]) for name in SUBJECT_NAMES_EL}
    adapted = peft.PeftModel.from_pretrained(base, adapter_dir).eval()
    chosen = {name: best_choices(adapted, tokenizer, name, greek.test[name]) for name in SUBJECT_NAMES_EL}
    assert chosen != plain
    for name, choices in chosen.items():
        right = [choice == row["answer"] for choice, row in zip(choices, greek.test[name], strict=True)]
        assert results[f"mmlu_{name}_el"]["acc,none"] == pytest.approx(sum(right) / len(right))
    sizes = [len(greek.test[subject.removeprefix("mmlu_").removesuffix("_el")]) for subject in subjects]
    right_in_all = sum(results[subject]["acc,none"] * size for subject, size in zip(subjects, sizes, strict=True))
    assert output["groups"]["mmlu_social_sciences_el"]["acc,none"] == pytest.approx(right_in_all / sum(sizes))
